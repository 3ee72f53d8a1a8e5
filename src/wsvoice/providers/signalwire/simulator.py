"""The simulator's half of SignalWire: Twilio's, with ids, signatures and codecs of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal
from xml.etree.ElementTree import Element

from wsvoice.audio import PCMU_8K, AudioFormat
from wsvoice.call import Call
from wsvoice.providers.base import Occasion, Simulator, StatusReport, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fields import shown
from wsvoice.providers.signalwire.company import SignalWireCompany
from wsvoice.providers.signalwire.fake_account import SignalWireFakeAccount
from wsvoice.providers.signalwire.stream import CODECS, SignalWireMirror
from wsvoice.providers.twilio.company import webhook_urls
from wsvoice.providers.twilio.fake_api import TwilioApi
from wsvoice.providers.twilio.simulator import TwilioSimulator
from wsvoice.providers.urls import form_request
from wsvoice.providers.xml_answer import Reading


class SignalWireApi(TwilioApi):
    """The compatibility API: https://developer.signalwire.com/rest/compatibility-api/overview"""

    account_type: ClassVar[type[FakeAccount] | None] = SignalWireFakeAccount
    users: ClassVar[tuple[tuple[str, str], ...]] = (("SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"),)


class SignalWireSimulator(SignalWireCompany, TwilioSimulator):
    """What ``wsvoice dial -t signalwire`` knows of SignalWire."""

    carrier_type = SignalWireMirror
    fake_api_type = SignalWireApi
    stream_attributes: ClassVar[frozenset[str]] = TwilioSimulator.stream_attributes | {
        "codec",
        "authBearerToken",
        "realtime",
    }

    def webhook_fields(self, call: Call, occasion: Occasion | None, status: str, now: float) -> dict[str, str]:
        # https://developer.signalwire.com/compatibility-api/cxml#request-parameters
        names = ("AccountSid", "ApiVersion", "CallSid", "CallStatus", "Direction", "From", "To", "StreamSid")
        fields = super().webhook_fields(call, occasion, status, now)
        return {name: fields[name] for name in names if name in fields}

    def status_fields(self, call: Call, report: StatusReport, now: float) -> dict[str, str]:
        # https://developer.signalwire.com/compatibility-api/guides/signalwire-status-callbacks/voice-status-callbacks
        fields = super().status_fields(call, report, now)
        fields.pop("Duration", None)
        code = fields.pop("SipResponseCode", "")
        return {**fields, "SipResultCode": code} if code else fields

    def request(self, url: str, method: str, fields: Mapping[str, str], now: float) -> WebhookRequest:
        return form_request(url, method, fields)

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        return Simulator.sign(self, request, now=now)

    def signature_headers(self, request: WebhookRequest, now: float) -> dict[str, str]:
        if not request.is_json:
            return super().signature_headers(request, now)
        return {self.signature_header: self.sign_json(next(webhook_urls(request.url)), request.body)}

    def upgrade_headers(self, url: str, *, now: float) -> dict[str, str]:
        # A bearer token is the document's.
        # https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
        return {}

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        return None

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        carrier, bot = super().new_secrets(seed)
        return carrier, {**bot, "SIGNALWIRE_STREAM_CODEC": self.codec}

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        return Simulator.new_ids(self, seed)

    def read_formats(self, stream: Element, reading: Reading) -> tuple[AudioFormat, AudioFormat | None]:
        codec = stream.get("codec", "PCMU@8000h")
        if codec not in CODECS:
            reading.found("fail", f"<Stream> asks for the codec {shown(codec)}; known are {', '.join(CODECS)}")
        return CODECS.get(codec, PCMU_8K), None

    def stream_headers(self, stream: Element) -> dict[str, str]:
        # https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
        token = stream.get("authBearerToken", "")
        return {"Authorization": f"Bearer {token}"} if token else {}
