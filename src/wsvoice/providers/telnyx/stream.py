"""Telnyx's stream messages: https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.errors import LocalProtocolError
from wsvoice.providers.base import Side
from wsvoice.providers.events import Connected, Digit, Event, StreamError, StreamStarted, StreamStopped
from wsvoice.providers.fields import (
    broken,
    read_counter,
    read_inner,
    read_parameters,
    read_time,
    shown,
    text_or_nothing,
    write_time,
)
from wsvoice.providers.json_stream import JsonStream
from wsvoice.providers.judged_stream import JudgedStream
from wsvoice.providers.telnyx.company import FOREIGN_CODECS, SAMPLE_RATES, TelnyxCompany, stable_uuid

#: How long a piece of the bot's audio may be.
#: https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
MIN_PIECE_MS, MAX_PIECE_MS = 20, 30_000


class TelnyxStream(JsonStream):
    """
    One end of a media stream.

    The start message says how the caller's audio is encoded, the answer alone how the bot's is: so the latter is given
    to both ends, as :attr:`outbound_format`. No message tells the byte order of ``L16``.
    """

    company: TelnyxCompany
    encodings: ClassVar[Mapping[AudioFormat, str]] = {
        AudioFormat(encoding, rate, big_endian): encoding.value
        for encoding, rates in SAMPLE_RATES.items()
        for rate in rates
        for big_endian in ((False, True) if encoding is Encoding.L16 else (False,))
    }
    carrier_messages: ClassVar[Mapping[type[Event], str]] = {**JsonStream.carrier_messages, StreamError: "error"}
    needs_stream_id: ClassVar[bool] = False

    stream_id_keys: ClassVar[tuple[str, ...]] = ("stream_id",)
    call_id_keys: ClassVar[tuple[str, ...]] = ("call_control_id",)
    account_id_keys: ClassVar[tuple[str, ...]] = ("user_id",)
    sequence_keys: ClassVar[tuple[str, ...]] = ("sequence_number",)
    parameters_keys: ClassVar[tuple[str, ...]] = ("custom_parameters",)
    format_keys: ClassVar[tuple[str, ...]] = ("media_format",)
    rate_keys: ClassVar[tuple[str, ...]] = ("sample_rate",)

    def __init__(self, side: Side, company: TelnyxCompany) -> None:
        super().__init__(side, company)
        self.outbound_format = company.format

    def begin(self, event: StreamStarted) -> None:
        outbound = self.outbound_format
        super().begin(event)
        self.outbound_format = outbound

    def envelope(self, name: str, event: Event, content: Any) -> dict[str, Any]:
        ids = {"event": name, "stream_id": self.stream_id}
        if isinstance(event, StreamError):
            return {**ids, "payload": content}
        if isinstance(event, Digit) and event.at is not None:
            ids["occurred_at"] = write_time(event.at)
        return {**ids, "sequence_number": str(self.next_sequence(event)), name: content}

    def connected_content(self, event: Connected) -> dict[str, str]:
        return {"version": event.version}

    def carrier_content(self, event: Event) -> Any:
        if isinstance(event, StreamError):
            code = read_counter(event.code)
            if code is None:
                raise LocalProtocolError("bad-error", f"an error's code is a number, not {shown(event.code)}")
            return {"code": code, "title": event.title, "detail": event.detail}
        if isinstance(event, StreamStopped):
            return {"user_id": self.account_id, "call_control_id": self.call_id}
        return super().carrier_content(event)

    def start_content(self, event: StreamStarted) -> dict[str, Any]:
        content = super().start_content(event)
        # There are no tracks, and the stream's id is outside.
        del content["tracks"], content["stream_id"]
        more = {"from": event.from_number, "to": event.to_number, "tags": []}
        return {**content, "call_session_id": stable_uuid("session", event.call_id), **more}

    def read_event(self, kind: type[Event], name: str, content: dict[str, Any], sequence: int | None) -> Event:
        if kind is StreamError:
            payload = read_inner(content, "payload", "bad-error")
            code, title, detail = (payload.get(key) for key in ("code", "title", "detail"))
            written = str(code) if isinstance(code, int) and read_counter(code) is not None else text_or_nothing(code)
            return StreamError(written, text_or_nothing(title), text_or_nothing(detail))
        event = super().read_event(kind, name, content, sequence)
        return replace(event, at=read_time(content.get("occurred_at"))) if isinstance(event, Digit) else event

    def read_start_parameters(self, content: dict[str, Any], start: dict[str, Any]) -> dict[str, str]:
        parameters = read_parameters(named_values(start.get("custom_parameters")))
        if isinstance(client_state := start.get("client_state"), str) and client_state:
            # What the API's user attached to the call, in base64; a custom parameter of that name wins.
            parameters.setdefault("client_state", client_state)
        return parameters

    def read_format(self, media_format: object) -> AudioFormat:
        if isinstance(media_format, dict) and (name := media_format.get("encoding")) in FOREIGN_CODECS:
            remedy = '<Stream codec="PCMU">, or stream_codec "PCMU" where the API answers'
            raise broken(
                "unsupported-codec", f"the stream's audio is {name}, which cannot be read; answer with {remedy}"
            )
        return super().read_format(media_format)

    def find_format(self, name: object, rate: int | None) -> AudioFormat | None:
        found = super().find_format(name, rate)
        return self.company.audio_format(found.encoding, found.sample_rate) if found else None


class TelnyxMirror(TelnyxStream, JudgedStream):
    """The carrier's end, which looks at what a bot sends."""

    payload_limit: ClassVar[int] = 0

    def judge_audio(self, payload: bytes) -> None:
        if len(payload) % self.outbound_format.sample_width:
            raise broken("bad-media", f"media.payload holds {len(payload)} bytes, which end in the middle of a sample")
        super().judge_audio(payload)
        duration_ms = self.outbound_format.duration_ms(len(payload))
        if payload and duration_ms < MIN_PIECE_MS:
            self.found("warn", f"a media message holds less than {MIN_PIECE_MS} ms of audio, Telnyx's least")
        elif duration_ms > MAX_PIECE_MS:
            self.found("fail", f"a media message holds more than {MAX_PIECE_MS // 1000} s of audio, Telnyx's most")


def named_values(written: object) -> object:
    """Return parameters that are written as a list of names and values, as commands have them, in one object."""
    if not isinstance(written, list):
        return written
    named = [each for each in written if isinstance(each, dict) and isinstance(each.get("name"), str)]
    return {each["name"]: each.get("value", "") for each in named}
