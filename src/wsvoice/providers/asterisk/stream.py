"""
What Asterisk's ``chan_websocket`` and a server say to each other: samples in binary messages, and all else in texts.

A text is a JSON object where the dial string has ``f(json)``, and words otherwise. Both are read, and what is sent is
written as ``MEDIA_START`` came.

https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/#control-messages
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.errors import LocalProtocolError
from wsvoice.providers import fields
from wsvoice.providers.base import CALL_PARAMETERS, Level, Side
from wsvoice.providers.binary_stream import BinaryStream
from wsvoice.providers.events import (
    Audio,
    Clear,
    Digit,
    Event,
    FlowControl,
    Mark,
    Status,
    StreamError,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.judged_stream import Judge
from wsvoice.providers.media_stream import NAME_LIMIT

#: slin is 16-bit and little-endian: https://docs.asterisk.org/Configuration/Codecs/
FORMATS = {
    "ulaw": PCMU_8K,
    "alaw": AudioFormat(Encoding.PCMA),
    "slin": AudioFormat(Encoding.L16),
    **{f"slin{rate}": AudioFormat(Encoding.L16, rate * 1000) for rate in (12, 16, 24, 32, 48)},
}
FRAME_MS = 20
#: Bytes of a text that Asterisk reads; a longer one is ignored without a word (``MAX_TEXT_MESSAGE_LEN``).
TEXT_LIMIT = 128

_OWN_VARIABLES = ("DIALEDPEERNUMBER", "MEDIA_WEBSOCKET_CONNECTION_ID", "MEDIA_WEBSOCKET_OPTIMAL_FRAME_SIZE")
#: The variables that the dial plan sets, for MEDIA_START has no numbers of its own.
_NUMBER_VARIABLES = {"from_number": "FROM", "to_number": "TO"}
#: https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/#commands
_OTHERS = re.compile(
    r"ANSWER|ST(ART|OP)_MEDIA_BUFFERING|REPORT_QUEUE_DRAINED|(PAUSE|CONTINUE)_MEDIA|SET_MEDIA_DIRECTION"
)
_WORDS = re.compile(r"([A-Z][A-Z_]+)(?: (.*))?", re.DOTALL)
#: The texts that hold fields; others hold an id, or nothing.
_WITH_FIELDS = frozenset({"MEDIA_START", "DTMF_END", "STATUS", "MEDIA_XOFF", "MEDIA_XON"})


class AsteriskStream(BinaryStream):
    """One end of a media WebSocket."""

    #: What is left of a message beside whole frames is dropped.
    bot_frame_ms: ClassVar[int] = FRAME_MS
    encodings: ClassVar[Mapping[AudioFormat, str]] = {wire: name for name, wire in FORMATS.items()}

    #: Whether texts are written as JSON; the bot's are written as the start was.
    is_json = True

    # Sending

    def write(self, event: Event) -> str | None:
        if isinstance(event, Clear) and self.side is Side.BOT:
            return self._write_command("FLUSH_MEDIA")
        if isinstance(event, Mark) and self.side is Side.BOT:
            return self._write_command("MARK_MEDIA", correlation_id=event.name)
        if isinstance(event, Mark):
            return self.write_text("MEDIA_MARK_PROCESSED", correlation_id=event.name)
        if isinstance(event, StreamStarted):
            return self.write_text("MEDIA_START", **self._start_values(event))
        if isinstance(event, Digit):
            return self.write_text("DTMF_END", digit=event.digit, channel_id=self.call_id)
        if isinstance(event, FlowControl):
            return self.write_text("MEDIA_XOFF" if event.paused else "MEDIA_XON")
        if isinstance(event, StreamError):
            return self.write_text("ERROR", channel_id=self.call_id, error_text=event.code)
        return None

    def write_text(self, name: str, **values: Any) -> str:
        """Return Asterisk's text called `name`; among words its `values` stand in this order."""
        if self.is_json:
            return fields.write_object({"event": name, "channel_id": self.call_id, **values})
        if "correlation_id" in values:
            return f"{name} {values['correlation_id']}".rstrip(" ")
        # Words are no place for objects, and write truth as JSON does.
        told = {key: value for key, value in values.items() if not isinstance(value, dict)}
        words = (f"{key}:{str(value).lower() if isinstance(value, bool) else value}" for key, value in told.items())
        return " ".join([name, *words])

    def _start_values(self, event: StreamStarted) -> dict[str, Any]:
        name, frame_bytes = self.encodings[event.format], event.format.bytes_for(FRAME_MS)
        # WebSocket/CONNECTION/ADDRESS
        connection = (event.stream_id.split("/")[1:2] or ["wsvoice"])[0]
        dialled = f"{connection}/c({name}){'f(json)' if self.is_json else ''}"
        variables = dict(zip(_OWN_VARIABLES, (dialled, connection, str(frame_bytes)), strict=True))
        variables |= {key: value for key, value in event.parameters.items() if key not in CALL_PARAMETERS}
        variables |= {key: number for ours, key in _NUMBER_VARIABLES.items() if (number := getattr(event, ours))}
        return {
            "connection_id": connection,
            "channel": event.stream_id,
            "channel_id": event.call_id,
            "format": name,
            "optimal_frame_size": frame_bytes,
            "ptime": FRAME_MS,
            "channel_variables": variables,
        }

    def _write_command(self, name: str, **values: str) -> str:
        text = fields.write_object({"command": name, **values}) if self.is_json else " ".join([name, *values.values()])
        if (size := _size(text)) > TEXT_LIMIT:
            raise LocalProtocolError("long-mark", f"a mark's message has {size} bytes; Asterisk reads {TEXT_LIMIT}")
        return text

    # Receiving

    def read(self, text: str) -> Event:
        # Kinds of errors: not-json, no-event, bad-start, bad-dtmf.
        name, values = self._read_text(text)
        if self.side is Side.CARRIER:
            return self.read_command(name, fields.text_or_nothing(values.get("correlation_id")))
        if name == "MEDIA_START":
            self.is_json = text.startswith("{")
            return self._read_start(values)
        if name == "DTMF_END":
            return Digit(fields.read_digit(values.get("digit")))
        if name in ("MEDIA_MARK_PROCESSED", "MEDIA_BUFFERING_COMPLETED"):
            return Mark(fields.text_or_nothing(values.get("correlation_id")))
        if name in ("MEDIA_XOFF", "MEDIA_XON"):
            return FlowControl(name == "MEDIA_XOFF")
        if name in ("STATUS", "QUEUE_DRAINED"):
            return Status((fields.read_counter(values.get("queue_length")) or 0) * float(FRAME_MS))
        if name == "ERROR":
            return StreamError(fields.text_or_nothing(values.get("error_text")).strip())
        return Unknown(name[:NAME_LIMIT])

    def read_command(self, name: str, correlation_id: str) -> Event:
        """Read a bot's text called `name`."""
        if name == "MARK_MEDIA":
            return Mark(correlation_id)
        if name == "FLUSH_MEDIA":
            return Clear()
        if name == "GET_STATUS":
            return Status()
        return StreamStopped() if name == "HANGUP" else Unknown(name[:NAME_LIMIT])

    def _read_text(self, text: str) -> tuple[str, Mapping[str, Any]]:
        """Return what a text is called, and what it holds."""
        if text.startswith("{"):
            content = fields.read_object(text)
            key = "event" if self.side is Side.BOT else "command"
            return fields.read_text(content.get(key), "no-event", f"the message's {key}"), content
        match = _WORDS.fullmatch(text)
        if match is None:
            raise fields.broken("not-json", f"neither JSON nor words of {self.company.title}'s: {fields.shown(text)}")
        name, rest = match.groups(default="")
        # Not by a pattern: one would take minutes for a long text without a colon.
        words = (word.partition(":") for word in rest.split()) if name in _WITH_FIELDS else ()
        told = {key: value for key, colon, value in words if colon}
        return name, {**told, "correlation_id": rest, "error_text": rest.partition("_text:")[2]}

    def _read_start(self, values: Mapping[str, Any]) -> StreamStarted:
        name, channel = values.get("format"), values.get("channel") or values.get("channel_id")
        wire = FORMATS.get(name) if isinstance(name, str) else None
        if wire is None:
            raise fields.broken("bad-start", f"the audio is {fields.shown(name)}, not one of {', '.join(FORMATS)}")
        told = fields.read_parameters(values.get("channel_variables"))
        # One underscore makes a variable be inherited, and is gone then; of two, both are still there.
        parameters = {key.lstrip("_"): value for key, value in told.items() if key not in _OWN_VARIABLES}
        parameters |= {ours: parameters.pop(key) for ours, key in _NUMBER_VARIABLES.items() if key in parameters}
        from_number, to_number = (parameters.get(ours, "") for ours in _NUMBER_VARIABLES)
        stream_id = fields.read_text(channel, "bad-start", "channel")
        # The first versions did not tell it.
        call_id = fields.read_text(values.get("channel_id") or channel, "bad-start", "channel_id")
        return StreamStarted(stream_id, call_id, "", from_number, to_number, wire, parameters)


class AsteriskMirror(AsteriskStream, Judge):
    """Asterisk's end, which looks at what a bot sends."""

    payload_limit: ClassVar[int] = 65_500
    payload_level: ClassVar[Level] = "fail"
    audio_message: ClassVar[str] = "binary"
    is_buffering = False

    def read_audio(self, message: bytes) -> Audio:
        payload = super().read_audio(message).payload
        frame_bytes = self.outbound_format.bytes_for(FRAME_MS)
        over = 0 if self.is_buffering else len(payload) % frame_bytes
        if over:
            self.found("fail", f"a message is no multiple of {frame_bytes} bytes, and Asterisk drops the rest of it")
        return Audio(payload[: len(payload) - over])

    def read(self, text: str) -> Event:
        event = super().read(text)
        if _size(text) <= TEXT_LIMIT:
            return event
        self.found("fail", f"Asterisk ignores a text of more than {TEXT_LIMIT} bytes: {fields.shown(text)}")
        return Unknown("ignored")

    def read_command(self, name: str, correlation_id: str) -> Event:
        if name in ("START_MEDIA_BUFFERING", "STOP_MEDIA_BUFFERING", "FLUSH_MEDIA"):
            self.is_buffering = name == "START_MEDIA_BUFFERING"
        event = super().read_command(name, correlation_id)
        if isinstance(event, Unknown) and not _OTHERS.fullmatch(name):
            self.found("warn", f"Asterisk knows no command {fields.shown(name)}, and says nothing to it")
        return event


def _size(text: str) -> int:
    """Return how many bytes a text has on the wire."""
    return len(text.encode("utf-8", "surrogatepass"))
