"""The simulator's half of Twilio: webhooks made and signed, TwiML carried out."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal
from urllib.parse import quote, urlencode
from xml.etree.ElementTree import Element

from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Callback, Occasion, StatusReport, StreamStatus, WebhookRequest
from wsvoice.providers.call_statuses import SIP_CODES, STATUSES, write_answered_by
from wsvoice.providers.fields import broken, shown, write_rfc2822, write_time
from wsvoice.providers.media_stream import Stream
from wsvoice.providers.signing import Fields, SignedUrl
from wsvoice.providers.twilio.company import PARAMETER_LIMIT, SETTINGS_HEADER, SigningKey, TwilioCompany
from wsvoice.providers.twilio.fake_api import TwilioApi
from wsvoice.providers.twilio.stream import TwilioMirror
from wsvoice.providers.urls import form_request
from wsvoice.providers.xml_answer import Reading, XmlSimulator

_FORM = "application/x-www-form-urlencoded; charset=UTF-8"
#: The number of the report in which a stage is told, where none is left out.
_SEQUENCE: Mapping[Stage, int] = {"queued": 0, "ringing": 1, "answered": 2, "completed": 3}
#: How long the simulated detection takes, in milliseconds.
_DETECTION_MS = 3000


class TwilioSimulator(TwilioCompany, XmlSimulator):
    """What ``wsvoice dial -t twilio`` knows of Twilio."""

    carrier_type: ClassVar[type[Stream]] = TwilioMirror
    fake_api_type = TwilioApi
    #: https://www.twilio.com/docs/api/errors/31931
    queue_limit_s: ClassVar[float] = 600.0
    #: https://www.twilio.com/docs/voice/media-streams/websocket-messages#send-a-clear-message
    cleared_marks: ClassVar[Literal["returned", "dropped"]] = "returned"
    #: https://www.twilio.com/docs/voice/twiml/stream#attributes
    stream_attributes: ClassVar[frozenset[str]] = frozenset(
        {"url", "name", "track", "statusCallback", "statusCallbackMethod"}
    )
    parameter_limit: ClassVar[int] = PARAMETER_LIMIT
    keeps_query: ClassVar[bool] = False
    webhook_agent: ClassVar[str] = "TwilioProxy/1.1"

    # The webhooks: https://www.twilio.com/docs/voice/twiml#request-parameters

    def stream_fields(self, call: Call, status: StreamStatus, name: str, error: str, now: float) -> dict[str, Any]:
        # https://www.twilio.com/docs/voice/twiml/stream#statuscallback
        return {
            "AccountSid": call.account_id,
            "CallSid": call.call_id,
            "StreamSid": call.stream_id,
            # Without a name of its own a stream is called by its id.
            "StreamName": name or call.stream_id,
            "StreamEvent": f"stream-{'error' if status == 'failed' else status}",
            **({"StreamError": error} if error else {}),
            "Timestamp": write_time(now),
        }

    def webhook_fields(self, call: Call, occasion: Occasion | None, status: str, now: float) -> dict[str, str]:
        # https://www.twilio.com/docs/voice/twiml/connect#action
        # https://www.twilio.com/docs/voice/twiml/redirect
        return {
            "AccountSid": call.account_id,
            "ApiVersion": "2010-04-01",
            "CallSid": call.call_id,
            "CallStatus": status,
            # Opaque, and escaped once more than the rest: a server that decodes twice breaks the signature.
            "CallToken": quote(json.dumps({"parentCallInfoToken": call.call_id}), safe=""),
            "Called": call.to_number,
            **_place("Called"),
            "Caller": call.from_number,
            **_place("Caller"),
            "Direction": "outbound-api" if call.direction == "outbound" else "inbound",
            "From": call.from_number,
            **_place("From"),
            "StirVerstat": "TN-Validation-Passed-A",
            "To": call.to_number,
            **_place("To"),
            **({"StreamSid": call.stream_id} if occasion == "action" else {}),
        }

    def status_webhook(
        self, call: Call, at: Callback, report: StatusReport, *, now: float = 0.0
    ) -> WebhookRequest | None:
        if report.answered_by is None:
            return self.request(at.url, at.method, self.status_fields(call, report, now), now)
        # https://www.twilio.com/docs/voice/answering-machine-detection#asyncamdstatuscallback
        fields = {
            "CallSid": call.call_id,
            "AccountSid": call.account_id,
            "AnsweredBy": write_answered_by(report.answered_by, greeting_ended=report.greeting_ended),
            "MachineDetectionDuration": str(_DETECTION_MS),
        }
        return self.request(at.url, at.method, fields, now)

    def status_fields(self, call: Call, report: StatusReport, now: float) -> dict[str, str]:
        """Return the fields of a report on a call that we placed, which has lasted some time if it is over."""
        # https://www.twilio.com/docs/voice/api/call-resource#statuscallback
        status = "initiated" if report.stage == "queued" else STATUSES[report.stage]
        asked = self.webhook_fields(call, None, status, now)
        fields = {name: value for name, value in asked.items() if name not in ("CallToken", "StirVerstat")}
        fields |= {
            "Timestamp": write_rfc2822(now),
            "CallbackSource": "call-progress-events",
            "SequenceNumber": str(_SEQUENCE.get(report.stage, 2)),
        }
        if report.stage in ENDED_STAGES:
            fields |= {"CallDuration": str(round(report.duration_s)), "SipResponseCode": str(SIP_CODES[report.stage])}
        if report.stage == "completed":
            # In minutes, each of them counted that has begun.
            fields["Duration"] = str(math.ceil(report.duration_s / 60))
        return fields

    def request(self, url: str, method: str, fields: Mapping[str, str], now: float) -> WebhookRequest:
        headers = {
            "accept": "*/*",
            "user-agent": self.webhook_agent,
            # The same when Twilio repeats a request, so it follows from what the request is about, and when.
            "i-twilio-idempotency-token": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{url}#{now!r}#{urlencode(fields)}")),
            "x-home-region": self.credential("TWILIO_REGION") or "us1",
        }
        return form_request(url, method, fields, headers, content_type=_FORM)

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """Return `request` with Twilio's signature; a JSON body is signed through its hash, which the URL gets."""
        url = SignedUrl.parse(request.url)
        if self.can_verify() and request.is_json and not any(name == "bodySHA256" for name, _ in request.query):
            digest = hashlib.sha256(request.body).hexdigest()
            url = url._replace(query=f"{url.query}{'&' if url.query else '?'}bodySHA256={digest}")
            request = replace(request, url=str(url))
        return super().sign(request, now=now)

    def signature_headers(self, request: WebhookRequest, now: float) -> dict[str, str]:
        return self._signature(str(SignedUrl.parse(request.url)), request.form)

    def upgrade_headers(self, url: str, *, now: float) -> dict[str, str]:
        """
        Return the headers of Twilio's WebSocket upgrade to `url`, signed if the secret is known.

        The signature is that of the ``wss://`` form, also where `url` is ``ws://`` for development.
        """
        signature = self._signature(str(SignedUrl.parse(url)._replace(scheme="wss"))) if self.can_verify() else {}
        return {"User-Agent": "Twilio.TmeWs/1.0", **signature}

    def _signature(self, url: str, fields: Fields = ()) -> dict[str, str]:
        if secret := self.credential(self.secret_name):
            return {self.signature_header: SigningKey(secret, "sha1").sign(url, fields)}
        shared = SigningKey(self.credential(self.shared_key_name), "sha256")
        sid = self.credential("TWILIO_WEBHOOK_SHARED_KEY_SID") or "webhooks_sharedkey_wsvoice"
        return {
            self.signature_header: shared.sign(url, fields),
            SETTINGS_HEADER: f"key={sid},algorithm=HMAC_SHA256",
        }

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        # https://www.twilio.com/docs/api/errors
        return {"timeout": "31901", "tls": "31910", "refused": "31920"}[kind]

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        secret = {self.secret_name: hashlib.sha256(b"secret" + seed).hexdigest()[:32]}
        return secret, secret

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        stream = hashlib.sha256(seed).hexdigest()[:32]
        return f"CA{seed[:16].hex()}", f"MZ{stream}", f"AC{seed[16:32].hex()}"

    # TwiML: https://www.twilio.com/docs/voice/twiml

    def read_response(self, body: bytes, content_type: str, reading: Reading) -> Element:
        # https://www.twilio.com/docs/voice/twiml#data-formats
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type.startswith("audio/"):
            raise broken("no-stream", f"the answer is {shown(media_type)}, which is played to the caller")
        if media_type not in ("text/xml", "application/xml", "text/html", "text/plain"):
            # https://www.twilio.com/docs/api/errors/12300
            raise broken("bad-content-type", f"the answer's type is {shown(media_type)}; send application/xml")
        try:
            return super().read_response(body, "text/xml", reading)
        except RemoteProtocolError as error:
            if media_type == "text/plain" and error.kind == "bad-xml":
                raise broken("no-stream", f"text/plain is read aloud unless it is TwiML: {error.message}") from None
            raise

    def judge_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> None:
        if "?" in stream.get("url", ""):
            reading.found("warn", f"{self.title} drops the query of the stream's URL; use the path or <Parameter>")
        if stream.get("track", "inbound_track") != "inbound_track":
            # https://www.twilio.com/docs/api/errors/31941
            reading.found("fail", "<Connect><Stream> allows no track but inbound_track")

    def explain_no_stream(self, verbs: Sequence[Element]) -> str:
        if any(verb.tag == "Start" and verb.find("Stream") is not None for verb in verbs):
            return "<Start><Stream> only listens; to speak, use <Connect><Stream>"
        return super().explain_no_stream(verbs)


def _place(prefix: str) -> dict[str, str]:
    """The fields about where a number is; Twilio sends, and signs, those that it does not know as well."""
    return {f"{prefix}City": "", f"{prefix}Country": "US", f"{prefix}State": "", f"{prefix}Zip": ""}
