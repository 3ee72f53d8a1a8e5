"""
The simulator's half of Bandwidth: webhooks with their password, BXML carried out, and the caller's end of the stream.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar
from xml.etree.ElementTree import Element

from wsvoice.audio import PCMU_8K, AudioFormat
from wsvoice.call import ENDED_STAGES, Call
from wsvoice.providers.bandwidth.company import (
    DOCUMENT_LIMIT,
    GREETING_TAG,
    BandwidthCompany,
    parameter_fault,
)
from wsvoice.providers.bandwidth.fake_account import CAUSES, call_url, shaped_id
from wsvoice.providers.bandwidth.fake_api import BandwidthApi
from wsvoice.providers.bandwidth.stream import BandwidthMirror
from wsvoice.providers.base import (
    Callback,
    Occasion,
    Quirk,
    Side,
    StatusReport,
    StreamRequest,
    StreamStatus,
    WebhookRequest,
)
from wsvoice.providers.events import Audio, Event, StreamStarted
from wsvoice.providers.fields import write_time
from wsvoice.providers.urls import basic_header, json_request, read_callback
from wsvoice.providers.xml_answer import WORDS_LIMIT, Reading, XmlSimulator

#: The voice application that is told of.
APPLICATION_ID = "7fc9698a-b04a-468b-9e8f-91238c0d0086"

_EVENTS = {"started": "mediaStreamStarted", "stopped": "mediaStreamStopped", "failed": "mediaStreamRejected"}


class BandwidthCarrier(BandwidthMirror):
    """The simulated carrier's end."""

    def __init__(self, side: Side, company: BandwidthSimulator) -> None:
        super().__init__(side, company)
        self._bare_tracks = company.quirk("tracks") == "names"

    def envelope(self, name: str, event: Event, content: Any) -> dict[str, Any]:
        if isinstance(event, Audio):
            content = {"track": content["track"], "payload": content["payload"]}
            return {"eventType": name, **content, "sequenceNumber": str(self.next_sequence(event))}
        metadata: dict[str, Any] = {"accountId": self.account_id, "callId": self.call_id, "streamId": self.stream_id}
        if not isinstance(event, StreamStarted):
            return {"eventType": name, "metadata": metadata}
        media_format = {"encoding": self.encodings[event.format], "sampleRate": event.format.sample_rate}
        track = "inbound" if self._bare_tracks else {"name": "inbound", "mediaFormat": media_format}
        parameters = {"streamParams": dict(event.parameters)} if event.parameters else {}
        return {"eventType": name, "metadata": {**metadata, "tracks": [track]}, **parameters}


class BandwidthSimulator(BandwidthCompany, XmlSimulator):
    """What ``wsvoice dial -t bandwidth`` knows of Bandwidth."""

    carrier_type = BandwidthCarrier
    fake_api_type = BandwidthApi
    document_limit: ClassVar[int] = DOCUMENT_LIMIT
    kept_settings: ClassVar[tuple[str, ...]] = ("BANDWIDTH_OUTBOUND_CODEC",)
    quirks: ClassVar[Mapping[str, Quirk]] = {
        "password": Quirk("asked", "whether a webhook's password waits until a 401 asks", ("asked", "at-once")),
        "tracks": Quirk("formats", "what the start message says of tracks: formats, or names", ("formats", "names")),
    }
    stream_element: ClassVar[str] = '<StartStream mode="bidirectional">'
    stream_parents: ClassVar[tuple[str, ...]] = ()
    url_attribute: ClassVar[str] = "destination"
    parameter_element: ClassVar[str] = "StreamParam"
    status_callback: ClassVar[str] = "streamEventUrl"
    messages: ClassVar[frozenset[str]] = frozenset({"SpeakSentence", "PlayAudio"})
    #: https://github.com/Bandwidth/python-sdk/blob/main/bandwidth/models/bxml/verbs/start_stream.py
    stream_attributes: ClassVar[frozenset[str]] = frozenset(
        {"name", "mode", "tracks", "destination", "destinationUsername", "destinationPassword"}
    ) | {"streamEventUrl", "streamEventMethod", "username", "password"}
    transfers: ClassVar[frozenset[str]] = frozenset({"Transfer", "Bridge", "Conference", "Refer", "Connect"})

    # Webhooks: https://dev.bandwidth.com/docs/voice/webhooks

    def webhook_fields(self, call: Call, occasion: Occasion | None, status: str, now: float) -> dict[str, str]:
        first = "answer" if call.direction == "outbound" else "initiate"
        return _fields(call, "redirect" if occasion else first, now)

    def request(self, url: str, method: str, fields: Mapping[str, Any], now: float) -> WebhookRequest:
        return json_request(url, method, fields)

    def stream_fields(self, call: Call, status: StreamStatus, name: str, error: str, now: float) -> dict[str, Any]:
        told = {"stopped": {"cause": "closed"}, "failed": {"cause": "connection-error", "errorMessage": error}}
        stream = {"id": call.stream_id, "name": name or call.stream_id}
        return {**_fields(call, _EVENTS[status], now), "mediaStream": stream, **told.get(status, {})}

    def status_webhook(
        self, call: Call, at: Callback, report: StatusReport, *, now: float = 0.0
    ) -> WebhookRequest | None:
        """
        Render what is told of a call that we placed: only that it is over, and who answered.

        https://dev.bandwidth.com/docs/voice/webhooks/disconnect
        https://dev.bandwidth.com/docs/voice/webhooks/machineDetectionComplete
        """
        if report.answered_by:
            value = {"human": "human", "machine": "answering-machine", "fax": "answering-machine"}.get(
                report.answered_by
            )
            result = {"machineDetectionResult": {"value": value or "silence", "duration": "PT3.5S"}}
            tag = {"tag": GREETING_TAG} if report.greeting_ended else {}
            fields = _fields(call, "machineDetectionComplete", now)
            return self.request(at.url, at.method, {**fields, **result, **tag}, now)
        if report.stage not in ENDED_STAGES:
            return None
        told = {"endTime": write_time(now), "cause": CAUSES[report.stage]}
        if report.stage == "completed":
            told["answerTime"] = write_time(now - report.duration_s)
        elif report.stage == "failed":
            told["errorMessage"] = "The call could not be completed"
        return self.request(at.url, at.method, {**_fields(call, "disconnect", now), **told}, now)

    def signature_headers(self, request: WebhookRequest, now: float) -> dict[str, str]:
        user, password = self.credential("BANDWIDTH_WEBHOOK_USERNAME"), self.credential("BANDWIDTH_WEBHOOK_PASSWORD")
        return basic_header(user, password)

    def knock(self, request: WebhookRequest) -> WebhookRequest | None:
        # The body comes with the password:
        # https://github.com/Bandwidth/api-docs/blob/main/site/docs/numbers/webhooks.mdx#authentication
        return replace(request, body=b"") if self.quirk("password") == "asked" else None

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        password = hashlib.sha256(b"password" + seed).hexdigest()[:32]
        given = {"BANDWIDTH_WEBHOOK_USERNAME": "wsvoice", "BANDWIDTH_WEBHOOK_PASSWORD": password}
        client = {
            "BANDWIDTH_ACCOUNT_ID": self.new_ids(seed)[2],
            "BANDWIDTH_CLIENT_ID": f"API-{uuid.UUID(bytes=seed[:16], version=4)}",
            "BANDWIDTH_CLIENT_SECRET": hashlib.sha256(b"client" + seed).hexdigest(),
            "BANDWIDTH_APPLICATION_ID": APPLICATION_ID,
        }
        return given, {**given, **client}

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        account = f"{int(seed[24:32].hex(), 16) % 9_000_000 + 1_000_000}"
        return shaped_id("c", seed), shaped_id("s", hashlib.sha256(seed).digest()), account

    # BXML: https://dev.bandwidth.com/docs/voice/bxml

    def find_stream(self, verb: Element) -> Element | None:
        return verb if verb.tag == "StartStream" and verb.get("mode") == "bidirectional" else None

    def read_redirect(self, verb: Element, base_url: str) -> Callback | None:
        # https://dev.bandwidth.com/docs/voice/bxml/redirect
        return read_callback(verb.get("redirectUrl"), verb.get("redirectMethod"), base_url, "<Redirect>")

    def read_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> StreamRequest:
        # Verbs go on beside the stream, and the call ends with them:
        # https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/startStream/#execution-behavior
        stops = bool(later) and later[0].tag == "StopStream"
        if not later or (stops and later[0].get("wait", "").lower() != "true"):
            text = "the stream ends as soon as it has begun"
            reading.found("fail", f'{text}: let <StopStream name="..." wait="true"/> follow <StartStream>')
        elif stops and later[0].get("name") != stream.get("name", ""):
            reading.found("fail", "<StopStream> waits for another stream than that of <StartStream>")
        return super().read_stream(stream, verb, later[1:] if stops else later, reading)

    def read_formats(self, stream: Element, reading: Reading) -> tuple[AudioFormat, AudioFormat | None]:
        return PCMU_8K, self.outbound_format

    def stream_headers(self, stream: Element) -> dict[str, str]:
        user, password = stream.get("destinationUsername", ""), stream.get("destinationPassword", "")
        return basic_header(user, password) if user or password else {}

    def judge_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> None:
        parameters = {each.get("name", ""): each.get("value", "") for each in stream.findall("StreamParam")}
        if fault := parameter_fault(parameters):
            reading.found("fail", fault)

    def describe(self, verb: Element) -> str:
        # https://dev.bandwidth.com/docs/voice/bxml/pause
        return f"Pause: {verb.get('duration', '1')[:WORDS_LIMIT]} s" if verb.tag == "Pause" else super().describe(verb)

    def explain_no_stream(self, verbs: Sequence[Element]) -> str:
        if any(verb.tag == "StartStream" for verb in verbs):
            return '<StartStream> only listens; to speak, it needs mode="bidirectional"'
        return super().explain_no_stream(verbs)


def _fields(call: Call, event: str, now: float) -> dict[str, str]:
    return {
        "eventType": event,
        "eventTime": write_time(now),
        "accountId": call.account_id,
        "applicationId": APPLICATION_ID,
        "from": call.from_number,
        "to": call.to_number,
        "direction": call.direction,
        "callId": call.call_id,
        "callUrl": call_url(call),
        "startTime": write_time(now),
    }
