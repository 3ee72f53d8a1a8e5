"""
SignalWire's facts for both ends, and how it signs:
https://github.com/signalwire/signalwire-python/blob/master/signalwire/request_validator.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wsvoice.providers.signalwire.stream import CODECS
from wsvoice.providers.signing import hmac_bytes
from wsvoice.providers.twilio.company import TwilioCompany


class SignalWireCompany(TwilioCompany):
    """SignalWire's facts."""

    name: ClassVar[str] = "signalwire"
    title: ClassVar[str] = "SignalWire"
    codes_page: ClassVar[str] = "https://developer.signalwire.com/rest/compatibility-api/overview/error-codes"
    credential_names: ClassVar[tuple[str, ...]] = (
        "SIGNALWIRE_SIGNING_KEY",
        "SIGNALWIRE_PROJECT_ID",
        "SIGNALWIRE_API_TOKEN",
        "SIGNALWIRE_SPACE",
        "SIGNALWIRE_API_BASE_URL",
        "SIGNALWIRE_STREAM_CODEC",
        "SIGNALWIRE_STREAM_REALTIME",
    )
    secret_name: ClassVar[str] = "SIGNALWIRE_SIGNING_KEY"
    shared_key_name: ClassVar[str] = ""
    signature_header: ClassVar[str] = "X-SignalWire-Signature"
    account_name: ClassVar[str] = "SIGNALWIRE_PROJECT_ID"
    token_name: ClassVar[str] = "SIGNALWIRE_API_TOKEN"
    #: https://developer.signalwire.com/rest/compatibility-api/overview
    api_path: ClassVar[str] = "/api/laml/2010-04-01"

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self.codec = self.setting("SIGNALWIRE_STREAM_CODEC", "PCMU@8000h", CODECS)
        # Unless told, SignalWire buffers what the bot says, and may play it late.
        self.realtime = self.setting("SIGNALWIRE_STREAM_REALTIME", "true", ("true", "false"))

    def sign_json(self, url: str, body: bytes) -> str:
        """Return the signature of a JSON body, which is signed as it is, after the URL."""
        content = url.encode("utf-8", "surrogatepass") + body
        return hmac_bytes(self.credential(self.secret_name), content, "sha1").hex()
