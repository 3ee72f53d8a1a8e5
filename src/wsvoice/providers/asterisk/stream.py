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
from wsvoice.providers.base import CALL_PARAMETERS, Side
from wsvoice.providers.binary_stream import BinaryStream
from wsvoice.providers.events import (
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
from wsvoice.providers.fields import (
    broken,
    read_counter,
    read_digit,
    read_object,
    read_parameters,
    read_text,
    shown,
    text_or_nothing,
    write_object,
)
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
_WORDS = re.compile(r"([A-Z][A-Z_]+)(?: (.*))?", re.DOTALL)
_FIELD = re.compile(r"(\w+):(\S*)")


class AsteriskStream(BinaryStream):
    """
    One end of a media WebSocket.

    Args:
        side: Which.
        is_json: Whether texts are written as JSON; the bot's are written as the start was.
    """

    title: ClassVar[str] = "Asterisk"
    #: What is left of a message beside whole frames is dropped.
    bot_frame_ms: ClassVar[int] = FRAME_MS
    encodings: ClassVar[Mapping[AudioFormat, str]] = {wire: name for name, wire in FORMATS.items()}

    def __init__(self, side: Side, *, is_json: bool = True) -> None:
        super().__init__(side)
        self.is_json = is_json

    # Sending

    def write(self, event: Event) -> str | None:
        if isinstance(event, Clear) and self.side is Side.BOT:
            return write_object({"command": "FLUSH_MEDIA"}) if self.is_json else "FLUSH_MEDIA"
        if isinstance(event, Mark) and self.side is Side.BOT:
            return self._write_mark(event.name)
        if isinstance(event, Mark):
            return self.write_text("MEDIA_MARK_PROCESSED", correlation_id=event.name)
        if isinstance(event, StreamStarted):
            return self.write_text("MEDIA_START", **self._start_fields(event))
        if isinstance(event, Digit):
            return self.write_text("DTMF_END", digit=event.digit, channel_id=self.call_id)
        if isinstance(event, FlowControl):
            return self.write_text("MEDIA_XOFF" if event.paused else "MEDIA_XON")
        if isinstance(event, StreamError):
            return self.write_text("ERROR", channel_id=self.call_id, error_text=event.code)
        return None

    def write_text(self, name: str, **fields: Any) -> str:
        """Return Asterisk's text called `name`; among words the fields stand in this order."""
        if self.is_json:
            return write_object({"event": name, "channel_id": self.call_id, **fields})
        if "correlation_id" in fields:
            return f"{name} {fields['correlation_id']}".rstrip(" ")
        told = ((key, value) for key, value in fields.items() if not isinstance(value, dict))
        return " ".join([name, *(f"{key}:{str(value).lower() if value in (0, 1) else value}" for key, value in told)])

    def _start_fields(self, event: StreamStarted) -> dict[str, Any]:
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

    def _write_mark(self, name: str) -> str:
        text = f"MARK_MEDIA {name}"
        if self.is_json:
            text = write_object({"command": "MARK_MEDIA", "correlation_id": name})
        if (size := text_size(text)) > TEXT_LIMIT:
            raise LocalProtocolError("long-mark", f"a mark's message has {size} bytes; Asterisk reads {TEXT_LIMIT}")
        return text

    # Receiving

    def read(self, text: str) -> Event:
        """
        Read a text of the other end.

        Raises:
            RemoteProtocolError: If it is none. Kinds: ``not-json``, ``no-event``, ``bad-start``, ``bad-dtmf``.
        """
        name, fields = self._read_fields(text)
        if self.side is Side.CARRIER:
            return self.read_command(name, text_or_nothing(fields.get("correlation_id")))
        if name == "MEDIA_START":
            self.is_json = text.startswith("{")
            return self._read_start(fields)
        if name == "DTMF_END":
            return Digit(read_digit(fields.get("digit")))
        if name in ("MEDIA_MARK_PROCESSED", "MEDIA_BUFFERING_COMPLETED"):
            return Mark(text_or_nothing(fields.get("correlation_id")))
        if name in ("MEDIA_XOFF", "MEDIA_XON"):
            return FlowControl(name == "MEDIA_XOFF")
        if name in ("STATUS", "QUEUE_DRAINED"):
            return Status((read_counter(fields.get("queue_length")) or 0) * float(FRAME_MS))
        if name == "ERROR":
            return StreamError(text_or_nothing(fields.get("error_text")).strip())
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

    def _read_fields(self, text: str) -> tuple[str, Mapping[str, Any]]:
        """Return what a text is called, and its fields."""
        if text.startswith("{"):
            content = read_object(text)
            key = "event" if self.side is Side.BOT else "command"
            return read_text(content.get(key), "no-event", f"the message's {key}"), content
        match = _WORDS.fullmatch(text)
        if match is None:
            raise broken("not-json", f"neither JSON nor words of {self.title}'s: {shown(text)}")
        name, rest = match.groups(default="")
        return name, {**dict(_FIELD.findall(rest)), "correlation_id": rest, "error_text": rest.partition("_text:")[2]}

    def _read_start(self, fields: Mapping[str, Any]) -> StreamStarted:
        name, channel = fields.get("format"), fields.get("channel") or fields.get("channel_id")
        wire = FORMATS.get(name) if isinstance(name, str) else None
        if wire is None:
            raise broken("bad-start", f"the audio is {shown(name)}; dial with c(...) and one of {', '.join(FORMATS)}")
        told = read_parameters(fields.get("channel_variables"))
        # One underscore makes a variable be inherited, and is gone then; of two, both are still there.
        parameters = {key.lstrip("_"): value for key, value in told.items() if key not in _OWN_VARIABLES}
        parameters |= {ours: parameters.pop(key) for ours, key in _NUMBER_VARIABLES.items() if key in parameters}
        return StreamStarted(
            stream_id=read_text(channel, "bad-start", "channel"),
            # The first versions did not tell it.
            call_id=read_text(fields.get("channel_id") or channel, "bad-start", "channel_id"),
            from_number=parameters.get("from_number", ""),
            to_number=parameters.get("to_number", ""),
            format=wire,
            parameters=parameters,
        )


def text_size(text: str) -> int:
    """Return how many bytes a text has on the wire."""
    return len(text.encode("utf-8", "surrogatepass"))
