"""The server's half of SignalWire: Twilio's, with ids, signatures and codecs of its own."""

from __future__ import annotations

from typing import ClassVar

from wsvoice.providers.base import WebhookRequest
from wsvoice.providers.signalwire.company import SignalWireCompany
from wsvoice.providers.signalwire.stream import SignalWireMirror, SignalWireStream
from wsvoice.providers.signing import is_same
from wsvoice.providers.twilio.company import webhook_urls
from wsvoice.providers.twilio.server import TwilioServer, has_uuid, is_start, is_uuid


class SignalWireServer(SignalWireCompany, TwilioServer):
    """What ``wsvoice run -t signalwire`` knows of SignalWire."""

    stream_type = SignalWireStream
    mirror_type = SignalWireMirror
    secret_place: ClassVar[str] = "the Signing Key on the space's API page"

    def recognises(self, request: WebhookRequest) -> bool:
        fields = request.fields
        return is_uuid(fields.get("CallSid")) and is_uuid(fields.get("AccountSid"))

    def claims(self, message: object) -> bool:
        return is_start(message) and has_uuid(message)

    def stream_settings(self) -> dict[str, str]:
        # https://developer.signalwire.com/compatibility-api/cxml/voice/stream#attributes
        return {"codec": self.codec, "realtime": self.realtime}

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless SignalWire signed this webhook.

        A form is signed as Twilio signs it; JSON as it is, after the URL.
        """
        if not request.is_json:
            super().verify(request, now=now)
            return
        signature = self.signature(request, "webhook")
        if not any(is_same(self.sign_json(url, request.body), signature) for url in webhook_urls(request.url)):
            raise self.mismatch(request)

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """Return the signature, in base64 or, as that of JSON, in hexadecimal; SignalWire sends no token beside it."""
        if not request.is_json:
            return super().replay_key(request)[0], None
        return request.headers.get(self.signature_header.lower(), ""), None

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        # https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
        return "nothing, for SignalWire signs no upgrade"
