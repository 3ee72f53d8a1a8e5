"""
SignalWire's stream messages: https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.providers.events import (
    Cleared,
    Connected,
    Digit,
    Event,
    Mark,
    StreamStarted,
    StreamStopped,
)
from wsvoice.providers.judged_stream import JudgedStream
from wsvoice.providers.twilio.stream import TwilioStream

#: https://developer.signalwire.com/compatibility-api/cxml/voice/stream#supported-codecs
CODECS = {
    "PCMU@8000h": PCMU_8K,
    "L16@16000h": AudioFormat(Encoding.L16, 16000),
    "L16@24000h": AudioFormat(Encoding.L16, 24000),
}
# What a key press lasts in the simulation, in milliseconds.
_DIGIT_MS = 100


class SignalWireStream(TwilioStream):
    """One end of a SignalWire stream."""

    encodings: ClassVar[Mapping[AudioFormat, str]] = {
        wire: "audio/x-mulaw" if wire.encoding is Encoding.PCMU else "audio/x-L16" for wire in CODECS.values()
    }
    carrier_messages: ClassVar[Mapping[type[Event], str]] = {**TwilioStream.carrier_messages, Cleared: "clear"}

    def connected_content(self, event: Connected) -> dict[str, str]:
        return {"protocol": "Call", "version": "0.2.0"}

    def carrier_content(self, event: Event) -> Any:
        if isinstance(event, Digit):
            return {"duration": _DIGIT_MS, "digit": event.digit}
        return super().carrier_content(event)

    def start_content(self, event: StreamStarted) -> dict[str, Any]:
        content = super().start_content(event)
        return content if event.parameters else {key: content[key] for key in content if key != "customParameters"}

    def envelope(self, name: str, event: Event, content: Any) -> dict[str, Any]:
        if isinstance(event, Digit | Mark):
            return {"event": name, "streamSid": self.stream_id, name: content}
        if isinstance(event, Cleared):
            return {"event": name, "streamSid": self.stream_id}
        counted = {"event": name, "sequenceNumber": str(self.next_sequence(event))}
        return counted if isinstance(event, StreamStopped) else {**counted, name: content}


class SignalWireMirror(SignalWireStream, JudgedStream):
    """The carrier's end, which looks at what a bot sends."""

    def judge(self, event: Event, name: str, content: dict[str, Any]) -> None:
        # A bot may press keys, which a test call has no use for.
        if name != "dtmf":
            super().judge(event, name, content)
