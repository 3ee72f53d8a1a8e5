"""The server's half of Twilio: webhooks verified, read and answered with TwiML."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import ClassVar
from urllib.parse import parse_qsl

from wsvoice.call import Call
from wsvoice.errors import LocalProtocolError, SignatureError
from wsvoice.providers.base import Answer, BusyMessage, CallUpdate, Server, WebhookRequest
from wsvoice.providers.callbacks import read_form_report
from wsvoice.providers.fields import broken, read_signature, shown, start_of
from wsvoice.providers.media_stream import Stream
from wsvoice.providers.signing import Fields, SignedUrl, is_same
from wsvoice.providers.twilio.company import PARAMETER_LIMIT, SETTINGS_HEADER, SigningKey, TwilioCompany, webhook_urls
from wsvoice.providers.twilio.dial import dial_document
from wsvoice.providers.twilio.stream import TwilioMirror, TwilioStream
from wsvoice.providers.urls import check_stream_url
from wsvoice.providers.xml_writer import busy_document, document, element

_DIGESTS = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class TwilioServer(TwilioCompany, Server):
    """What ``wsvoice run -t twilio`` knows of Twilio."""

    stream_type = TwilioStream
    mirror_type: ClassVar[type[Stream]] = TwilioMirror
    webhook_place: ClassVar[str] = "voice webhook of the number"
    secret_place: ClassVar[str] = "the Auth Token on the console's first page"

    def recognises(self, request: WebhookRequest) -> bool:
        fields = request.fields
        return fields.get("CallSid", "").startswith("CA") and fields.get("AccountSid", "").startswith("AC")

    def claims(self, message: object) -> bool:
        return is_start(message) and not has_uuid(message)

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        # https://www.twilio.com/docs/voice/twiml#request-parameters
        fields = request.fields
        call_id = fields.get("CallSid", "")
        if not call_id:
            raise broken("no-call", f"the request has no CallSid, so it is not a webhook of {self.title}'s")
        if (update := read_form_report(fields)) is not None:
            return update
        caller, called = fields.get("From") or fields.get("Caller", ""), fields.get("To") or fields.get("Called", "")
        is_outbound = fields.get("Direction", "").startswith("outbound")
        return self.announced(call_id, fields.get("AccountSid", ""), caller, called, is_outbound=is_outbound)

    def answer(self, call: Call, stream_url: str, status_url: str = "") -> Answer:
        """
        Render the TwiML that connects `call` to a two-way stream.

        Both numbers and the direction go along as ``from_number``, ``to_number`` and ``direction``, for a
        stream's start message names none of them; a parameter of the user's that is called the same wins.

        https://www.twilio.com/docs/voice/twiml/stream
        https://www.twilio.com/docs/voice/twiml/stream#statuscallback
        """
        if check_stream_url(stream_url).query:
            raise LocalProtocolError("bad-url", f"{self.title} drops the query of a stream's URL")
        parameters = self.sent_parameters(call)
        for name, value in parameters.items():
            if not name:
                raise LocalProtocolError("bad-parameter", "a custom parameter has no name")
            if len(name) + len(value) > PARAMETER_LIMIT:
                raise LocalProtocolError(
                    "long-parameter",
                    f"the parameter {shown(name)} has {len(name) + len(value)} characters with its name; "
                    f"{self.title} takes {PARAMETER_LIMIT}",
                )
        named = (element("Parameter", {"name": name, "value": value}) for name, value in parameters.items())
        reports = {"statusCallback": status_url, "statusCallbackMethod": "POST"} if status_url else {}
        stream = element("Stream", {"url": stream_url, **reports, **self.stream_settings()}, *named)
        return Answer(document(element("Connect", None, stream)))

    def stream_settings(self) -> dict[str, str]:
        """Return what ``<Stream>`` says beside its URL."""
        return {}

    def transfer_document(self, request: WebhookRequest) -> Answer:
        to = dict(request.query).get("to", "")
        if not to:
            raise LocalProtocolError("no-answer", "the address of a transfer names nobody to call")
        return Answer(dial_document(to))

    def acknowledge(self) -> Answer:
        """
        Render an empty document, for callbacks: most need none, and the ``action`` of a ``<Connect>`` ends the call.

        https://www.twilio.com/docs/voice/api/call-resource#statuscallback
        https://www.twilio.com/docs/voice/twiml/connect#action
        """
        return Answer(document())

    def busy(self, call: Call | None = None, message: BusyMessage | None = None) -> Answer:
        # https://www.twilio.com/docs/voice/twiml/say
        # https://www.twilio.com/docs/voice/twiml/play
        # https://www.twilio.com/docs/voice/twiml/reject
        if message is not None:
            return Answer(busy_document(message))
        return Answer(document(element("Reject", {"reason": "busy"})))

    # Signatures

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        # Twilio does not sign the time: https://www.twilio.com/docs/usage/security#validating-requests
        key, signature = self._key_and_signature(request, "webhook")
        if request.is_json:
            covered = next((value for name, value in request.query if name == "bodySHA256"), "")
            if not covered:
                raise SignatureError(
                    "the webhook's body is JSON, and its signature does not cover it",
                    hint=f"{self.title} adds bodySHA256=... to the URL; let no proxy take the query away",
                )
            if not is_same(hashlib.sha256(request.body).hexdigest(), covered):
                raise SignatureError(
                    "the webhook's body is not the one that was signed",
                    hint="something between the provider and wsvoice rewrote the JSON",
                )
        if not any(is_same(key.sign(url, request.form), signature) for url in webhook_urls(request.url)):
            raise self.mismatch(request)

    def mismatch(self, request: WebhookRequest) -> SignatureError:
        """Return what is said of a webhook whose signature does not match."""
        return SignatureError(
            f"the webhook's {self.signature_header} does not match",
            hint=f"checked against {str(SignedUrl.parse(request.url))[:200]} - if {self.title} calls another address, "
            "name it with -x; otherwise the secret is not that of the account that owns the number",
        )

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """
        Return the signature, however it is written, and the token that Twilio repeats when it sends a webhook again.

        https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides
        """
        signature = read_signature(request.headers.get(self.signature_header.lower(), ""))
        return signature.hex(), request.headers.get("i-twilio-idempotency-token", "")

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """
        Return which form of the stream's URL the upgrade's signature matches, in words.

        Twilio signs the ``wss://`` URL without parameters. Reports differ about the trailing slash, the port
        and the query, so the other forms are tried as well.

        https://www.twilio.com/docs/voice/media-streams#secure-your-media-stream
        """
        key, signature = self._key_and_signature(request, "WebSocket's upgrade")
        for words, url, fields in _upgrade_forms(request.url):
            if is_same(key.sign(url, fields), signature):
                return words
        asked = SignedUrl.parse(request.url)._replace(scheme="wss")
        raise SignatureError(
            f"the WebSocket's {self.signature_header} does not match",
            hint=f"checked against {str(asked)[:200]} and its https, port and slash forms - "
            f"if {self.title} connects to another address, name it with -x",
        )

    def _key_and_signature(self, request: WebhookRequest, what: str) -> tuple[SigningKey, str]:
        signature = self.signature(request, what)
        return self._key_for(request.headers.get(SETTINGS_HEADER.lower(), "")), signature

    def signature(self, request: WebhookRequest, what: str) -> str:
        """
        Return the signature that a request carries.

        Raises:
            SignatureError: If it carries none, or no secret is known that it could be held against.
        """
        if not self.can_verify():
            raise SignatureError(
                f"the {what}'s signature cannot be checked without a secret", hint=f"set {self.secret_name}"
            )
        signature = request.headers.get(self.signature_header.lower(), "")
        if not signature:
            raise SignatureError(
                f"the {what} carries no {self.signature_header}",
                hint=f"it does not come from {self.title}, or a proxy removed the header",
            )
        return signature

    def _key_for(self, settings: str) -> SigningKey:
        # https://github.com/twilio/twilio-python/blob/9.13.0/twilio/request_validator.py
        named = {
            name.strip(): value.strip()
            for part in settings.split(",")
            for name, equals, value in [part.partition("=")]
            if equals and value.strip()
        }
        digest = _DIGESTS.get(named.get("algorithm", "HMAC_SHA1").upper())
        if digest is None:
            raise SignatureError(
                f"the signature's algorithm {shown(named['algorithm'])} is unknown",
                hint="known are HMAC_SHA1 and HMAC_SHA256",
            )
        name = self.shared_key_name if "algorithm" in named else self.secret_name
        sid = self.credential("TWILIO_WEBHOOK_SHARED_KEY_SID")
        if "algorithm" in named and sid and named.get("key") != sid:
            raise SignatureError(
                f"the signature is made with the shared key {shown(named.get('key'))}",
                hint="TWILIO_WEBHOOK_SHARED_KEY_SID names another one",
            )
        if not (secret := self.credential(name)):
            raise SignatureError(
                f"the signature needs a secret that is not set: {name}",
                hint=f"set {name}, or unset the others",
            )
        return SigningKey(secret, digest)


def is_start(message: object) -> bool:
    """Whether a message is a start of Twilio's dialect: camel case, with both ids."""
    start = start_of(message)
    # Exotel has been seen to write camel case as well, but its start says who calls, which this one never does.
    return {"streamSid", "callSid"} <= start.keys() and not {"from", "to"} <= start.keys()


def is_uuid(value: object) -> bool:
    """Whether an id is a UUID, as SignalWire's are and Twilio's are not."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def has_uuid(message: object) -> bool:
    """Whether the call of a start message is named by a UUID."""
    return is_uuid(start_of(message).get("callSid"))


def _upgrade_forms(url: str) -> Iterator[tuple[str, str, Fields]]:
    """Every form of a stream's URL that has been seen signed, with its name, the documented one first."""
    asked = SignedUrl.parse(url)
    forms = list(asked.forms(("wss", "https")))
    yield from ((words, str(form), ()) for words, form in forms)
    fields = parse_qsl(asked.query[1:], keep_blank_values=True)
    if fields:
        for words, form in forms:
            yield f"{words}, its query as parameters", str(form._replace(query="")), fields
