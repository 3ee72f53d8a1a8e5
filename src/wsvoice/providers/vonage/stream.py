"""
Vonage's stream messages: https://developer.vonage.com/en/voice/voice-api/concepts/websockets

The audio is binary, the samples alone. Events are JSON, and so are a bot's commands. The first event repeats what the
NCCO put into ``headers``, and says nothing about the call by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.audio import AudioFormat
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers import fields
from wsvoice.providers.base import Side
from wsvoice.providers.binary_stream import BinaryStream
from wsvoice.providers.events import Clear, Cleared, Digit, Event, Mark, StreamStarted, StreamStopped, Unknown
from wsvoice.providers.fields import broken, read_object, shown, write_object
from wsvoice.providers.media_stream import NAME_LIMIT
from wsvoice.providers.vonage.company import FORMATS, OWN_FIELDS

_EVENTS: Mapping[type[Any], str] = {
    StreamStarted: "websocket:connected",
    Digit: "websocket:dtmf",
    Mark: "websocket:notify",
    Cleared: "websocket:cleared",
    StreamStopped: "websocket:disconnected",
}
_COMMANDS: Mapping[type[Any], str] = {Mark: "notify", Clear: "clear"}


class VonageStream(BinaryStream):
    """One end of a stream; it has no id of its own, so it goes by its call's."""

    encodings: ClassVar[Mapping[AudioFormat, str]] = {wire: name for name, wire in FORMATS.items()}
    default_format: ClassVar[AudioFormat] = FORMATS["audio/l16;rate=16000"]
    #: It is important that each message holds exactly as much.
    bot_frame_ms: ClassVar[int] = 20

    def write(self, event: Event) -> str | None:
        key, names = ("action", _COMMANDS) if self.side is Side.BOT else ("event", _EVENTS)
        content: dict[str, Any] = {}
        if isinstance(event, StreamStarted):
            content = {"content-type": self.encodings[event.format], "call_id": event.call_id, **event.parameters}
            # An NCCO of somebody else's need not name the call, and then nothing does.
            content = {name: value for name, value in content.items() if value or name != "call_id"}
        elif isinstance(event, Digit):
            content = {"digit": event.digit, "duration": 260}
        elif isinstance(event, Mark):
            content = {"payload": {"name": event.name} if self.side is Side.BOT else _payload(event.name)}
        name = names.get(type(event))
        return write_object({key: name, **content}) if name else None

    def read(self, text: str) -> Event:
        # Kinds of errors: not-json, not-object, no-event, bad-start, bad-dtmf, bad-mark.
        content = read_object(text)
        key, names = ("event", _EVENTS) if self.side is Side.BOT else ("action", _COMMANDS)
        name = content.get(key)
        if not isinstance(name, str) or not name:
            raise broken("no-event", f"the message's {key} is {shown(name)}")
        kind = next((kind for kind, called in names.items() if called == name), None)
        if kind is StreamStarted:
            return self.read_start(content)
        if kind is Digit:
            return Digit(fields.read_digit(content.get("digit")))
        if kind is Mark:
            payload = fields.read_inner(content, "payload", "bad-mark")
            name = payload.get("name")
            # One that is none of ours is called by its JSON; and to the carrier, which returns it as it came, one
            # whose name is such JSON.
            if len(payload) == 1 and isinstance(name, str) and (self.side is Side.BOT or _payload(name) == payload):
                return Mark(name)
            return Mark(write_object(payload))
        return kind() if kind else Unknown(name[:NAME_LIMIT])

    def read_start(self, content: dict[str, Any]) -> StreamStarted:
        """Read the first event, which holds the NCCO's ``headers`` beside the audio's type."""
        if (wire := FORMATS.get(fields.squeezed(str(content.get("content-type"))))) is None:
            raise broken("bad-start", f"Vonage does not stream {shown(content.get('content-type'))}")
        call_id = fields.read_text(content.get("call_id"), "bad-start", "the call_id of the NCCO's headers")
        given = {name: value for name, value in fields.read_parameters(content).items() if name not in OWN_FIELDS}
        from_number, to_number = given.get("from_number", ""), given.get("to_number", "")
        return StreamStarted(call_id, call_id, "", from_number, to_number, wire, given)


def _payload(name: str) -> dict[str, Any]:
    """Return the payload that comes back for a mark as the carrier calls it: its name, or what is JSON as it is."""
    try:
        return read_object(name)
    except RemoteProtocolError:
        return {"name": name}
