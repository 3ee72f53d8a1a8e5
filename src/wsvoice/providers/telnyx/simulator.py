"""The simulator's half of Telnyx: webhooks made and signed, TeXML carried out."""

from __future__ import annotations

import hashlib
import uuid
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal
from xml.etree.ElementTree import Element

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import (
    Behaviour,
    Callback,
    Command,
    Occasion,
    Progress,
    Quirk,
    StatusReport,
    StreamRequest,
    StreamStatus,
    WebhookRequest,
)
from wsvoice.providers.call_statuses import SIP_CODES, STATUSES, write_answered_by
from wsvoice.providers.events import StreamError
from wsvoice.providers.fields import broken, read_counter, shown, write_object, write_time
from wsvoice.providers.telnyx.company import (
    FOREIGN_CODECS,
    HANGUP_CAUSES,
    SAMPLE_RATES,
    SIGNATURE_HEADER,
    TEXML_NAMES,
    TIMESTAMP_HEADER,
    SettingNames,
    TelnyxCompany,
    hangup_source,
    stable_uuid,
)
from wsvoice.providers.telnyx.fake_api import TelnyxApi
from wsvoice.providers.telnyx.stream import TelnyxMirror
from wsvoice.providers.urls import form_request
from wsvoice.providers.xml_answer import Reading, XmlSimulator

_INVALID_MEDIA, _MALFORMED_FRAME = ("100004", "invalid_media"), ("100003", "malformed_frame")
_AGENT = {"user-agent": "telnyx-webhooks"}

#: How TeXML counts its reports. https://developers.telnyx.com/api-reference/callbacks/texml-call-initiated
_TEXML_SEQUENCE: Mapping[Stage, int] = {"queued": 0, "ringing": 1, "answered": 2}


class TelnyxCarrier(TelnyxMirror):
    """The simulated carrier's end."""

    def error_reply(self, error: RemoteProtocolError) -> StreamError | None:
        code, title = _INVALID_MEDIA if error.kind in ("bad-media", "bad-base64") else _MALFORMED_FRAME
        return StreamError(code, title, error.message)


class TelnyxSimulator(TelnyxCompany, XmlSimulator):
    """What ``wsvoice dial -t telnyx`` knows of Telnyx."""

    carrier_type = TelnyxCarrier
    fake_api_type = TelnyxApi
    #: Telnyx names no limit, but a longest message; an hour is more than any bot means to queue.
    queue_limit_s: ClassVar[float] = 3600.0
    #: https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
    cleared_marks: ClassVar[Literal["returned", "dropped"]] = "returned"
    quirks: ClassVar[Mapping[str, Quirk]] = {
        "reorder": Quirk(
            "0", "how likely two neighbouring pieces of audio change places, from 0 to 1", most=1.0, sets="reorder"
        ),
        "leg-codec": Quirk(
            "PCMU", "the codec of the call's leg, which is streamed where the answer names none", ("PCMU", "PCMA")
        ),
        "webhook": Quirk("texml", "what kind of application the number belongs to", ("texml", "call-control")),
    }
    kept_settings: ClassVar[tuple[str, ...]] = ("TELNYX_STREAM_CODEC", "TELNYX_L16_BYTE_ORDER")
    #: A ``<Start><Stream>`` speaks as well, but the document goes on at once.
    stream_parents: ClassVar[tuple[str, ...]] = ("Connect", "Start")

    def behaviour(self) -> Behaviour:
        leg = AudioFormat(Encoding(self.quirk("leg-codec")))
        by_commands = self.quirk("webhook") == "call-control"
        return replace(super().behaviour(), leg_format=leg, by_commands=by_commands)

    # The webhooks

    def webhook(self, call: Call, url: str, *, method: str = "POST", now: float = 0.0) -> WebhookRequest:
        # https://developers.telnyx.com/docs/voice/programmable-voice/texml-instruction-fetching
        # https://developers.telnyx.com/api-reference/callbacks/texml-call-initiated
        if not self._by_events(call):
            return super().webhook(call, url, method=method, now=now)
        outbound = call.direction == "outbound"
        content = {
            "direction": "outgoing" if outbound else "incoming",
            "state": "bridging" if outbound else "parked",
            "caller_id_name": call.from_number,
            "calling_party_type": "pstn",
            "start_time": write_time(now),
        }
        return self._event(call, url, "call.initiated", content, now)

    def stream_fields(self, call: Call, status: StreamStatus, name: str, error: str, now: float) -> dict[str, Any]:
        # https://developers.telnyx.com/api-reference/callbacks/texml-stream
        return {
            "AccountSid": call.account_id,
            "CallSid": call.call_id,
            "CallSidLegacy": call.call_id,
            "StreamEvent": f"stream-{status}",
            "StreamName": name,
            "StreamSid": call.stream_id,
            "Timestamp": write_time(now),
            **({"StreamError": error} if error else {}),
        }

    def progress_webhook(
        self, call: Call, at: Callback, progress: Progress, *, duration_s: float = 0.0, now: float = 0.0
    ) -> WebhookRequest | None:
        # https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks
        if not self._by_events(call):
            return None
        kind = {"answered": "call.answered", "streaming": "streaming.started", "ended": "call.hangup"}[progress]
        hangup = {"hangup_cause": "normal_clearing", "hangup_source": "caller", "sip_hangup_cause": "200"}
        return self._event(call, at.url, kind, hangup if progress == "ended" else {}, now)

    def status_webhook(
        self, call: Call, at: Callback, report: StatusReport, *, now: float = 0.0
    ) -> WebhookRequest | None:
        if self._by_events(call):
            return self._status_event(call, at, report, now)
        ids = {"AccountSid": call.account_id, "CallSid": call.call_id, "CallSidLegacy": call.call_id}
        fields = {**ids, "ConnectionId": _connection_id(call)}
        if report.answered_by is not None:
            # https://developers.telnyx.com/api-reference/callbacks/texml-call-amd
            fields["AnsweredBy"] = write_answered_by(report.answered_by, greeting_ended=report.greeting_ended)
            return self.request(at.url, at.method, {**fields, "MachineDetectionDuration": "2500"}, now)
        # https://developers.telnyx.com/api-reference/callbacks/texml-call-initiated
        fields |= {
            "CallInitiatedAt": write_time(now - report.duration_s),
            "CallStatus": "initiated" if report.stage == "queued" else STATUSES[report.stage],
            "CallbackSource": "call-progress-events",
            "From": call.from_number,
            "SequenceNumber": str(_TEXML_SEQUENCE.get(report.stage, 3)),
            "Timestamp": write_time(now),
            "To": call.to_number,
        }
        if report.stage in ENDED_STAGES:
            # https://developers.telnyx.com/api-reference/callbacks/texml-call-completed
            fields |= {"CallControlId": call.call_id, "CallDuration": str(round(report.duration_s))}
            fields |= {"HangupCause": HANGUP_CAUSES[report.stage], "HangupSource": hangup_source(report.stage)}
        return self.request(at.url, at.method, fields, now)

    def _status_event(self, call: Call, at: Callback, report: StatusReport, now: float) -> WebhookRequest | None:
        """Render an event of Call Control; it has none for a call that only waits, and one for dialling and ringing."""
        if report.greeting_ended:
            # https://developers.telnyx.com/api-reference/callbacks/call-machine-greeting-ended
            return self._event(call, at.url, "call.machine.greeting.ended", {"result": "beep_detected"}, now)
        if report.answered_by is not None:
            # https://developers.telnyx.com/api-reference/callbacks/call-machine-detection-ended
            premium = ".premium" if report.answered_by == "fax" else ""
            result = {"fax": "fax_detected", "unknown": "not_sure"}.get(report.answered_by, report.answered_by)
            return self._event(call, at.url, f"call.machine{premium}.detection.ended", {"result": result}, now)
        if report.stage == "queued":
            return None
        if report.stage == "ringing":
            return self._event(call, at.url, "call.initiated", {"direction": "outgoing", "state": "bridging"}, now)
        if report.stage == "answered":
            return self._event(call, at.url, "call.answered", {"state": "answered"}, now)
        # https://developers.telnyx.com/api-reference/callbacks/call-hangup
        hangup = {
            "hangup_cause": HANGUP_CAUSES[report.stage],
            "hangup_source": hangup_source(report.stage),
            "state": "hangup",
        }
        return self._event(
            call, at.url, "call.hangup", {**hangup, "sip_hangup_cause": str(SIP_CODES[report.stage])}, now
        )

    def command_webhook(self, call: Call, at: Callback, command: Command, *, now: float = 0.0) -> WebhookRequest | None:
        """
        Render the event that a call was answered, or has heard all of a message.

        https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks
        """
        told = {"client_state": command.state}
        if command.kind == "answer":
            return self._event(call, at.url, "call.answered", {**told, "state": "answered"}, now)
        if command.kind == "message":
            kind = "playback" if command.message.startswith(("http://", "https://")) else "speak"
            return self._event(call, at.url, f"call.{kind}.ended", {**told, "status": "completed"}, now)
        return None

    def _by_events(self, call: Call) -> bool:
        return call.control == "api" or self.quirk("webhook") == "call-control"

    def webhook_fields(self, call: Call, occasion: Occasion | None, status: str, now: float) -> dict[str, str]:
        # https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/redirect
        return {
            "AccountSid": call.account_id,
            "ApiVersion": "v2/texml",
            "CallInitiatedAt": write_time(now),
            "CallSessionId": stable_uuid("session", call.call_id),
            "CallSid": call.call_id,
            # "Legacy call identifier, same as CallSid."
            "CallSidLegacy": call.call_id,
            "CallStatus": status,
            "CallerId": call.from_number,
            "CallerName": call.from_number,
            "CallingPartyType": "pstn",
            "ConnectionId": _connection_id(call),
            "Direction": "outbound" if call.direction == "outbound" else "inbound",
            "From": call.from_number,
            "FromSipUri": f"{call.from_number}@sip.telnyx.com",
            "To": call.to_number,
            "ToSipUri": f"{call.to_number}@sip.telnyx.com",
            **({"StreamSid": call.stream_id} if occasion == "action" else {}),
        }

    def request(self, url: str, method: str, fields: Mapping[str, str], now: float) -> WebhookRequest:
        return form_request(url, method, fields, _AGENT)

    def _event(self, call: Call, url: str, kind: str, details: Mapping[str, str], now: float) -> WebhookRequest:
        data = {
            "record_type": "event",
            "event_type": kind,
            # The same when Telnyx repeats the event, so it follows from what the event is about.
            "id": stable_uuid(kind, call.call_id),
            "occurred_at": write_time(now),
            "payload": {
                "call_control_id": call.call_id,
                "connection_id": _connection_id(call),
                "call_leg_id": stable_uuid("leg", call.call_id),
                "call_session_id": stable_uuid("session", call.call_id),
                "client_state": None,
                "from": call.from_number,
                "to": call.to_number,
                **details,
            },
        }
        content = {"data": data, "meta": {"attempt": 1, "delivered_to": url}}
        return WebhookRequest(
            "POST", url, {**_AGENT, "content-type": "application/json"}, write_object(content).encode()
        )

    def signature_headers(self, request: WebhookRequest, now: float) -> dict[str, str]:
        if (key := self.private_key()) is None:
            return {}
        timestamp = str(int(now))
        signature = b64encode(key.sign(timestamp.encode() + b"|" + request.body)).decode()
        return {SIGNATURE_HEADER: signature, TIMESTAMP_HEADER: timestamp}

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        # What streaming.failed gives as its reason:
        # https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
        return "connection_failed"

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """Invent the key pair of a test call, one key for each end, and the bot's key to the API."""
        key = hashlib.sha256(b"key" + seed).digest()
        public = Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
        api_key = f"KEY{hashlib.sha256(b'api' + seed).hexdigest()[:32].upper()}"
        keys = {"TELNYX_PUBLIC_KEY": b64encode(public).decode(), "TELNYX_API_KEY": api_key}
        return {"TELNYX_PRIVATE_KEY": b64encode(key).decode()}, keys

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        _, stream_id, account_id = super().new_ids(seed)
        call_id = urlsafe_b64encode(hashlib.sha512(seed).digest()[:40]).rstrip(b"=").decode()
        return f"v3:{call_id}", stream_id.upper(), account_id

    # TeXML: https://developers.telnyx.com/docs/voice/programmable-voice/texml-fundamentals

    def read_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> StreamRequest:
        request = super().read_stream(stream, verb, later, reading)
        # What follows a <Start> has run by the time that its stream ends.
        return replace(request, rest=b"") if verb.tag == "Start" else request

    def read_formats(self, stream: Element, reading: Reading) -> tuple[AudioFormat, AudioFormat | None]:
        return self.read_settings(stream.attrib, TEXML_NAMES, reading)

    def read_settings(
        self, told: Mapping[str, str], names: SettingNames, reading: Reading
    ) -> tuple[AudioFormat, AudioFormat]:
        """
        Return the formats of the caller's audio and of the bot's.

        Args:
            told: The settings of a stream that an answer tells.
            names: What the answer calls them.
            reading: Where it is noted what Telnyx would do to the audio.

        Raises:
            RemoteProtocolError: Of kind ``unsupported-codec``.
        """
        track = told.get(names.track) or "inbound_track"
        if track == "both_tracks":
            reading.found("warn", f"{names.track} is both_tracks, so the bot hears itself as well", "W4")
        elif track != "inbound_track":
            reading.found("fail", f"{names.track} is {shown(track)}, so the bot does not hear the caller", "W4")
        mode = told.get(names.mode)
        if mode != "rtp":
            what = f"{names.mode} is {shown(mode)}" if mode else f"there is no {names.mode}"
            text = f'takes what the bot sends for MP3 files, and plays nothing: set {names.mode} to "rtp"'
            reading.found("fail", f"{what}: Telnyx {text}", "W4")
        return self._read_inbound(told.get(names.codec, ""), names, reading), self._read_outbound(told, names, reading)

    def _read_inbound(self, codec: str, names: SettingNames, reading: Reading) -> AudioFormat:
        if codec in tuple(Encoding):
            return self.audio_format(Encoding(codec), SAMPLE_RATES[Encoding(codec)][0])
        if codec in ("", "default"):
            what = f"{names.codec} is default" if codec else f"there is no {names.codec}"
            text = 'A-law in most of Europe and in India; set it to "PCMU"'
            reading.found("warn", f"{what}: Telnyx sends the codec of the call's leg, {text}", "W4")
        elif codec in FOREIGN_CODECS:
            text = "Telnyx turns nothing but PCMU and PCMA into each other, and sends the codec of the call's leg"
            reading.found("warn", f"{names.codec} is {codec}: {text}", "W4")
        else:
            reading.found("fail", f"{names.codec} is {shown(codec)}, which Telnyx does not know", "W4")
        return AudioFormat(Encoding(self.quirk("leg-codec")))

    def _read_outbound(self, told: Mapping[str, str], names: SettingNames, reading: Reading) -> AudioFormat:
        codec, written = told.get(names.outbound_codec) or "PCMU", told.get(names.outbound_rate)
        if codec not in tuple(Encoding):
            why = "which a test call cannot play" if codec in FOREIGN_CODECS else "which Telnyx does not know"
            raise broken("unsupported-codec", f"{names.outbound_codec} is {shown(codec)}, {why}; set it to PCMU")
        rates, rate = SAMPLE_RATES[Encoding(codec)], read_counter(written or "8000")
        if rate not in rates:
            allowed = ", ".join(map(str, sorted(rates)))
            reading.found("fail", f"{names.outbound_rate} is {shown(written)}, but {codec} goes with {allowed}", "W4")
            rate = rates[0]
        elif codec == Encoding.L16 and not written:
            text = "Telnyx takes the bot's audio for 8000 Hz"
            reading.found("warn", f"there is no {names.outbound_rate} for L16: {text}", "W4")
        return self.audio_format(Encoding(codec), rate)

    def reconnects(self, stream: Element) -> bool:
        return stream.get("enableReconnect", "true").strip().lower() != "false"

    def judge_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> None:
        if verb.tag == "Start":
            text = "does not wait for the stream: the call ends with the document; use <Connect>"
            reading.found("warn" if later else "fail", f"<Start> {text}")
        if self.reconnects(stream):
            text = "dials the stream again when the bot closes it, so the call does not end"
            reading.found("warn", f'Telnyx {text}: set enableReconnect="false"', "W4")


def _connection_id(call: Call) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"telnyx:connection:{call.account_id}").int)[:19]
