"""
A media stream of JSON messages that hold base64 audio, as most companies have it.

A company is a subclass that says its keys, the names of its messages and its encodings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.audio import AudioFormat
from wsvoice.errors import LocalProtocolError
from wsvoice.providers.base import Company, Side
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Connected,
    Digit,
    Event,
    Mark,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.fields import (
    broken,
    read_counter,
    read_digit,
    read_inner,
    read_object,
    read_parameters,
    read_payload,
    read_text,
    shown,
    text_or_nothing,
    write_object,
    write_payload,
)
from wsvoice.providers.media_stream import NAME_LIMIT, Stream


class JsonStream(Stream):
    """
    One end of a stream of JSON messages. By itself it is a plain dialect of Media Streams, as Twilio began them.

    A class attribute that holds several keys names the one that is written first; all of them are read.
    """

    #: The key of a message's name, which stands first in it.
    name_key: ClassVar[str] = "event"
    #: The names of the carrier's messages.
    carrier_messages: ClassVar[Mapping[type[Event], str]] = {
        Connected: "connected",
        StreamStarted: "start",
        Audio: "media",
        Digit: "dtmf",
        Mark: "mark",
        StreamStopped: "stop",
    }
    #: Further names of the carrier's messages, which are read and never sent.
    carrier_aliases: ClassVar[Mapping[str, type[Event]]] = {}
    #: The names of the bot's messages.
    bot_messages: ClassVar[Mapping[type[Event], str]] = {Audio: "media", Mark: "mark", Clear: "clear"}
    #: The tracks that a carrier sends.
    tracks: ClassVar[tuple[str, ...]] = ("inbound", "outbound")
    #: Whether a bot's messages carry the stream's id.
    needs_stream_id: ClassVar[bool] = True

    stream_id_keys: ClassVar[tuple[str, ...]] = ("streamSid",)
    call_id_keys: ClassVar[tuple[str, ...]] = ("callSid",)
    account_id_keys: ClassVar[tuple[str, ...]] = ("accountSid",)
    sequence_keys: ClassVar[tuple[str, ...]] = ("sequenceNumber",)
    parameters_keys: ClassVar[tuple[str, ...]] = ("customParameters",)
    format_keys: ClassVar[tuple[str, ...]] = ("mediaFormat",)
    rate_keys: ClassVar[tuple[str, ...]] = ("sampleRate",)

    def __init__(self, side: Side, company: Company) -> None:
        super().__init__(side, company)
        self._sequence = 0
        self._chunks: dict[str, int] = defaultdict(int)
        self._sent_bytes: dict[str, int] = defaultdict(int)
        # The bot's media message around its payload, once the stream has started: used 50 times a second.
        self._media_head = self._media_tail = ""
        mine, others = self.carrier_messages, self.bot_messages
        if side is Side.BOT:
            mine, others = others, mine
        self._names = mine
        self._kinds = {name: kind for kind, name in others.items()}
        if side is Side.BOT:
            self._kinds |= self.carrier_aliases

    # Sending

    def send(self, event: Event) -> str:
        if self._media_head and type(event) is Audio:
            return f"{self._media_head}{write_payload(event.payload)}{self._media_tail}"
        name = self._names.get(type(event))
        if name is None:
            raise self.no_message(event)
        self.check(event)
        if isinstance(event, Audio):
            return write_object(self.envelope(name, event, self.media_content(event)))
        if self.side is Side.BOT:
            return write_object(self.bot_message(name, event))
        if isinstance(event, Connected):
            return write_object({self.name_key: name, **self.connected_content(event)})
        return write_object(self.envelope(name, event, self.carrier_content(event)))

    def envelope(self, name: str, event: Event, content: Any) -> dict[str, Any]:
        """Return a message of the carrier's, called `name`, around its `content`."""
        number = str(self.next_sequence(event))
        ids = {self.name_key: name, self.sequence_keys[0]: number}
        return {**ids, name: content, self.stream_id_keys[0]: self.stream_id}

    def connected_content(self, event: Connected) -> dict[str, str]:
        """Return what the carrier's first message, which is not counted, holds."""
        return {"protocol": "Call", "version": event.version}

    def next_sequence(self, event: Event) -> int:
        """Count a message of the carrier's; one that has a number of its own keeps it."""
        sequence = getattr(event, "sequence", None)
        self._sequence = self._sequence + 1 if sequence is None else sequence
        return self._sequence

    def carrier_content(self, event: Event) -> Any:
        """Return what the carrier's message of `event` holds under its own name."""
        if isinstance(event, StreamStarted):
            return self.start_content(event)
        if isinstance(event, Digit):
            return {"digit": event.digit}
        if isinstance(event, Mark):
            return {"name": event.name}
        return {}

    def start_content(self, event: StreamStarted) -> dict[str, Any]:
        """Return what the start message holds under its own name."""
        return {
            self.account_id_keys[0]: event.account_id,
            self.stream_id_keys[0]: event.stream_id,
            self.call_id_keys[0]: event.call_id,
            "tracks": ["inbound"],
            self.format_keys[0]: {
                "encoding": self.encodings[event.format],
                self.rate_keys[0]: event.format.sample_rate,
                "channels": 1,
            },
            self.parameters_keys[0]: dict(event.parameters),
        }

    def media_content(self, audio: Audio) -> dict[str, Any]:
        """Return what the carrier's media message holds under its own name."""
        track = audio.track
        if track not in self.tracks:
            known = " or ".join(self.tracks)
            raise LocalProtocolError("bad-track", f"{self.company.title}'s track is {known}, not {shown(track)}")
        chunk = self._chunks[track] = self._chunks[track] + 1 if audio.chunk is None else audio.chunk
        self._sent_bytes[track] += len(audio.payload)
        at_ms = self.sent_ms(track) if audio.timestamp_ms is None else audio.timestamp_ms
        payload = write_payload(audio.payload)
        return {"track": track, "chunk": str(chunk), "timestamp": str(at_ms), "payload": payload}

    def sent_ms(self, track: str) -> int:
        """Return how much audio of `track` the carrier has sent, which is the stream's age."""
        return round(self.format.duration_ms(self._sent_bytes[track]))

    def bot_message(self, name: str, event: Event) -> dict[str, Any]:
        """Return the bot's message of `event`; of audio its payload is left out."""
        message: dict[str, Any] = {self.name_key: name}
        if self.needs_stream_id:
            message[self.stream_id_keys[0]] = self.stream_id
        if isinstance(event, Audio):
            return {**message, name: {"payload": ""}}
        return {**message, name: {"name": event.name}} if isinstance(event, Mark) else message

    def begin(self, event: StreamStarted) -> None:
        super().begin(event)
        if self.side is Side.BOT:
            message = write_object(self.bot_message(self._names[Audio], Audio(b"")))
            head, key, tail = message.rpartition('"payload":"')
            self._media_head, self._media_tail = head + key, tail

    # Receiving

    def receive(self, message: str | bytes) -> Event:
        # Kinds of errors: binary, not-json, not-object, no-event, bad-start, bad-media, bad-base64, bad-dtmf, bad-mark,
        # and a company's own.
        content = read_object(message)
        name = content.get(self.name_key)
        if not isinstance(name, str) or not name:
            raise broken("no-event", f"the message's {self.name_key} is {shown(name)}")
        kind = self._kinds.get(name)
        if kind is Audio:
            return self.read_media(name, content)
        sequence = read_counter(first_of(content, self.sequence_keys)) if self.side is Side.BOT else None
        event = self.read_event(kind, name, content, sequence) if kind else Unknown(name[:NAME_LIMIT])
        if isinstance(event, StreamStarted):
            self.begin(event)
        elif self.side is Side.CARRIER:
            self.judge(event, name, content)
        return event

    def read_event(self, kind: type[Event], name: str, content: dict[str, Any], sequence: int | None) -> Event:
        """Read a message other than audio, called `name`, as an event of `kind`."""
        if kind is StreamStarted:
            return self.read_start(content, sequence)
        if kind is Digit:
            return Digit(read_digit(read_inner(content, name, "bad-dtmf").get("digit")), sequence)
        if kind is Mark:
            return Mark(read_text(read_inner(content, name, "bad-mark").get("name"), "bad-mark", "mark.name"), sequence)
        if kind is Connected:
            version = content.get("version")
            return Connected(version) if isinstance(version, str) else Connected()
        if kind is StreamStopped:
            inner = content.get(name)
            reason = inner.get("reason") if isinstance(inner, dict) else content.get("reason")
            return StreamStopped(text_or_nothing(reason), sequence)
        if kind is Cleared:
            return Cleared(sequence)
        return Clear() if kind is Clear else Unknown(name[:NAME_LIMIT])

    def read_start(self, content: dict[str, Any], sequence: int | None) -> StreamStarted:
        """Read the start message."""
        start = read_inner(content, "start", "bad-start")
        stream_id = first_of(start, self.stream_id_keys) or first_of(content, self.stream_id_keys)
        parameters = self.read_start_parameters(content, start)
        return StreamStarted(
            stream_id=read_text(stream_id, "bad-start", f"start.{self.stream_id_keys[0]}"),
            call_id=read_text(first_of(start, self.call_id_keys), "bad-start", f"start.{self.call_id_keys[0]}"),
            account_id=text_or_nothing(first_of(start, self.account_id_keys)),
            # Where the message has no field for them, answers of ours, and pipecat's convention, send them along.
            from_number=text_or_nothing(start.get("from")) or parameters.get("from_number", ""),
            to_number=text_or_nothing(start.get("to")) or parameters.get("to_number", ""),
            format=self.read_format(first_of(start, self.format_keys)),
            parameters=parameters,
            sequence=sequence,
        )

    def read_start_parameters(self, content: dict[str, Any], start: dict[str, Any]) -> dict[str, str]:
        """Return the custom parameters of a start message."""
        return read_parameters(first_of(start, self.parameters_keys))

    def read_format(self, media_format: object) -> AudioFormat:
        """
        Return the format that a start message names; the default where it names none, and an encoding's first rate.

        Raises:
            RemoteProtocolError: If it is none that the company streams: it is not guessed.
        """
        if media_format is None:
            return self.default_format
        if not isinstance(media_format, dict):
            raise broken("bad-start", f"start.{self.format_keys[0]} is {shown(media_format)}, not an object")
        name, written = media_format.get("encoding"), first_of(media_format, self.rate_keys)
        name = self.encodings[self.default_format] if name is None else name
        rates = (each.sample_rate for each, called in self.encodings.items() if called == name)
        rate = next(rates, self.default_format.sample_rate) if written is None else read_counter(written)
        if (known := self.find_format(name, rate)) is not None:
            return known
        what = f"{shown(name)} at {shown(written) if rate is None else rate} Hz"
        raise broken("bad-start", f"the audio is {what}, which {self.company.title} does not stream")

    def find_format(self, name: object, rate: int | None) -> AudioFormat | None:
        """Return the format that the start message calls `name`, at `rate`."""
        pairs = self.encodings.items()
        return next((each for each, called in pairs if (called, each.sample_rate) == (name, rate)), None)

    def read_media(self, name: str, content: dict[str, Any]) -> Audio:
        """Read a message of audio."""
        media = read_inner(content, "media", "bad-media")
        payload = read_payload(media.get("payload"))
        if self.side is Side.CARRIER:
            self.judge_media(content, media, payload)
            return Audio(self.whole_samples(payload))
        return Audio(
            self.whole_samples(payload),
            "outbound" if media.get("track") == "outbound" else "inbound",
            read_counter(media.get("chunk")),
            self.read_timestamp(media),
            read_counter(first_of(content, self.sequence_keys)),
        )

    def read_timestamp(self, media: dict[str, Any]) -> int | None:
        """Return the stream's age in milliseconds that a media message tells."""
        return read_counter(media.get("timestamp"))

    # What a simulated carrier thinks of a bot's messages

    def judge(self, event: Event, name: str, content: dict[str, Any]) -> None:
        """Look at a message of the bot's other than audio."""

    def judge_media(self, content: dict[str, Any], media: dict[str, Any], payload: bytes) -> None:
        """Look at a message of the bot's audio."""


def first_of(content: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value of the first of `keys` that is there; ``None`` if none is."""
    for key in keys:
        if key in content:
            return content[key]
    return None
