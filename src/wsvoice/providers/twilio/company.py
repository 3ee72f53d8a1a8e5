"""How Twilio signs, and those who speak its dialect: https://www.twilio.com/docs/usage/security"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

from wsvoice.providers.base import Company
from wsvoice.providers.signing import Fields, SignedUrl, hmac_base64

SETTINGS_HEADER = "X-Twilio-Webhooks-Signature-Settings"
#: Name and value together: https://www.twilio.com/docs/voice/twiml/stream#custom-parameters
PARAMETER_LIMIT = 500
#: A number's settings that concern its calls: as requests name them, with the name in answers.
#: https://www.twilio.com/docs/phone-numbers/api/incomingphonenumber-resource
VOICE_SETTINGS: Mapping[str, str] = {
    "VoiceUrl": "voice_url",
    "VoiceMethod": "voice_method",
    "VoiceFallbackUrl": "voice_fallback_url",
    "VoiceFallbackMethod": "voice_fallback_method",
    "StatusCallback": "status_callback",
    "StatusCallbackMethod": "status_callback_method",
}
#: What takes a number's calls in the place of its ``VoiceUrl``, where it is set.
OVERRIDES: Mapping[str, str] = {"TrunkSid": "trunk_sid", "VoiceApplicationSid": "voice_application_sid"}
#: What is detected of who answers, in the words of :data:`wsvoice.providers.account.Detection` and in Twilio's.
#: https://www.twilio.com/docs/voice/answering-machine-detection#machinedetection
DETECTIONS: Mapping[str, str] = {"detect": "Enable", "greeting-end": "DetectMessageEnd"}


class TwilioCompany(Company):
    """Twilio's facts, for both ends."""

    name: ClassVar[str] = "twilio"
    title: ClassVar[str] = "Twilio"
    codes_page: ClassVar[str] = "https://www.twilio.com/docs/api/errors/{code}"
    credential_names: ClassVar[tuple[str, ...]] = (
        "TWILIO_AUTH_TOKEN",
        "TWILIO_WEBHOOK_SHARED_KEY",
        "TWILIO_WEBHOOK_SHARED_KEY_SID",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_API_KEY",
        "TWILIO_API_SECRET",
        "TWILIO_REGION",
        "TWILIO_EDGE",
        "TWILIO_API_BASE_URL",
    )
    #: The secret that signs; those who speak Twilio's dialect have others.
    secret_name: ClassVar[str] = "TWILIO_AUTH_TOKEN"
    #: The key that signs where there is one; only Twilio knows it.
    shared_key_name: ClassVar[str] = "TWILIO_WEBHOOK_SHARED_KEY"
    signature_header: ClassVar[str] = "X-Twilio-Signature"
    #: The account, and its token, that requests to the API carry.
    account_name: ClassVar[str] = "TWILIO_ACCOUNT_SID"
    token_name: ClassVar[str] = "TWILIO_AUTH_TOKEN"
    #: Where the API's paths begin: https://www.twilio.com/docs/usage/requests-to-twilio
    api_path: ClassVar[str] = "/2010-04-01"

    def can_verify(self) -> bool:
        """Whether a secret that webhooks are signed with is known."""
        return bool(self.credential(self.secret_name) or self.credential(self.shared_key_name))


class SigningKey(NamedTuple):
    """A secret, and the hash that it is used with."""

    secret: str
    digest: str

    def sign(self, url: str, fields: Fields = ()) -> str:
        """
        Return the signature of `url` and the form's `fields`.

        A repeated field counts once for each different value, as in Twilio's own libraries.
        """
        values: dict[str, set[str]] = defaultdict(set)
        for name, value in fields:
            values[name].add(value)
        signed = "".join([url, *(name + value for name in sorted(values) for value in sorted(values[name]))])
        return hmac_base64(self.secret, signed, self.digest)


def webhook_urls(written: str) -> Iterator[str]:
    """Both forms of a webhook's URL: some of Twilio's products leave the port out of what they sign."""
    url = SignedUrl.parse(written)
    yield str(url)
    yield str(url.other_port())
    if str(url) != written:
        yield written
