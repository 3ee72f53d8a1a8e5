"""
What each provider says on its stream, written by hand from its documents, and a caller who says it.

Nothing here comes from the package, so that the server is not tested against its own reading of the documents.
"""

from __future__ import annotations

import asyncio
import audioop
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import websockets
from websockets.asyncio.client import ClientConnection

Message = dict[str, Any]

FROM_NUMBER, TO_NUMBER = "+15550100001", "+15550100002"

#: Stands for a message where the end of a stream is none: the socket is closed.
HANG_UP: Message = {"close": 1000}


class Wire(NamedTuple):
    """How audio is written; both functions are to and from s16le."""

    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]
    sample_rate: int = 8000


MULAW = Wire(lambda pcm: audioop.lin2ulaw(pcm, 2), lambda payload: audioop.ulaw2lin(payload, 2))
ALAW = Wire(lambda pcm: audioop.lin2alaw(pcm, 2), lambda payload: audioop.alaw2lin(payload, 2))


def linear(sample_rate: int, *, big_endian: bool = False) -> Wire:
    if big_endian:
        return Wire(lambda pcm: audioop.byteswap(pcm, 2), lambda payload: audioop.byteswap(payload, 2), sample_rate)
    return Wire(bytes, bytes, sample_rate)


class Dialect:
    """
    One provider's messages.

    Args:
        call_id: The call's id.
        wire: How the audio is written, both ways.
        parameters: Custom parameters in the start message.
        details: What the start message has in place of, or beside, the usual.
    """

    name: ClassVar[str]
    stream_id: ClassVar[str]
    account_id: ClassVar[str]
    own_call_id: ClassVar[str]
    default_wire: ClassVar[Wire] = MULAW
    #: How long a piece of the caller's audio is.
    frame_ms: ClassVar[int] = 20
    #: Whether media messages say whose voice it is.
    has_tracks: ClassVar[bool] = True
    #: Whether a webhook announces its calls; of whoever has none, the stream is dialled at once.
    has_webhook: ClassVar[bool] = True
    #: How a webhook's body is written, as httpx calls it: a form, or JSON.
    webhook_body: ClassVar[Literal["data", "json"]] = "data"
    #: Whether the stream tells which keys the caller presses.
    has_keys: ClassVar[bool] = True
    #: Whether it tells when what the bot said has been played.
    has_marks: ClassVar[bool] = True
    #: Whether audio is binary messages, the samples alone.
    is_binary: ClassVar[bool] = False
    subprotocol: ClassVar[str] = ""
    #: What names the events of both sides.
    name_keys: ClassVar[tuple[str, str]] = ("event", "event")
    #: The names of what the bot sends: audio, marks, clears.
    bot_events: ClassVar[tuple[str, str, str]] = ("media", "mark", "clear")

    def __init__(
        self,
        *,
        call_id: str = "",
        wire: Wire | None = None,
        parameters: Mapping[str, Any] | None = None,
        **details: Any,
    ) -> None:
        self.call_id = call_id or self.own_call_id
        self.wire = wire or self.default_wire
        self.parameters = dict(parameters or {})
        self.details = details

    # The webhook

    def form(self) -> dict[str, str]:
        """The fields of the webhook."""
        raise NotImplementedError

    def request(self, method: str, **others: str) -> dict[str, Any]:
        """The webhook as httpx takes it, with other fields beside the usual."""
        place = "params" if method == "GET" else self.webhook_body
        return {"method": method, place: {**self.form(), **others}}

    # What the carrier says

    def connected(self) -> list[Message]:
        return [{"event": "connected", "protocol": "Call", "version": "1.0.0"}]

    def start(self) -> Message:
        raise NotImplementedError

    def bad_start(self, content: Any) -> Message:
        """A start whose content is another."""
        return {"event": "start", "start": content}

    def handshake(self) -> list[Message]:
        return [*self.connected(), self.start()]

    def media(self, payload: Any, chunk: int = 1, track: str = "inbound") -> Message:
        raise NotImplementedError

    def digits(self, keys: str) -> list[Message]:
        """The messages of pressed keys, where there are any."""
        return [self.digit(key) for key in keys if self.has_keys]

    def digit(self, key: str) -> Message:
        raise NotImplementedError

    def played(self, name: str) -> Message:
        raise NotImplementedError

    def stop(self) -> Message:
        """The message that ends the stream, or `HANG_UP`."""
        raise NotImplementedError

    def nothings(self) -> list[Message]:
        """Messages that are right and mean nothing to the caller's audio."""
        marks = [self.played("nobody's")] if self.has_marks else []
        return [*self.connected(), *marks, {self.name_keys[0]: "of-tomorrow"}]

    # What the bot says

    def name_of(self, message: Message | bytes) -> str:
        """What a bot's message is called."""
        return self.bot_events[0] if isinstance(message, bytes) else str(message[self.name_keys[1]])

    def mark_name(self, message: Message) -> str:
        return str(message["mark"]["name"])

    def check_bot_audio(self, message: Any) -> None:
        """Hold that a message of the bot's audio is one that the provider plays."""
        raise NotImplementedError

    def payload_of(self, message: Any) -> bytes:
        """The audio of a bot's message."""
        return message if isinstance(message, bytes) else base64.b64decode(message["media"]["payload"])

    def audio(self, pcm: bytes, chunk: int = 1, track: str = "inbound") -> Message | bytes:
        payload = self.wire.encode(pcm)
        return payload if self.is_binary else self.media(base64.b64encode(payload).decode(), chunk, track)


class Twilio(Dialect):
    """https://www.twilio.com/docs/voice/media-streams/websocket-messages"""

    name = "twilio"
    own_call_id = "CA00000000000000000000000000000001"
    stream_id = "MZ00000000000000000000000000000001"
    account_id = "AC00000000000000000000000000000001"

    def form(self) -> dict[str, str]:
        return {
            "AccountSid": self.account_id,
            "CallSid": self.call_id,
            "From": FROM_NUMBER,
            "To": TO_NUMBER,
            "Direction": "inbound",
            "CallStatus": "ringing",
        }

    def start(self) -> Message:
        return {
            "event": "start",
            "sequenceNumber": "1",
            "streamSid": self.stream_id,
            "start": {
                "accountSid": self.account_id,
                "streamSid": self.stream_id,
                "callSid": self.call_id,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": self.parameters,
                **self.details,
            },
        }

    def media(self, payload: Any, chunk: int = 1, track: str = "inbound") -> Message:
        media = {"track": track, "chunk": str(chunk), "timestamp": str(20 * chunk), "payload": payload}
        return {"event": "media", "sequenceNumber": str(chunk + 1), "media": media, "streamSid": self.stream_id}

    def digit(self, key: str) -> Message:
        dtmf = {"track": "inbound_track", "digit": key}
        return {"event": "dtmf", "streamSid": self.stream_id, "sequenceNumber": "5", "dtmf": dtmf}

    def played(self, name: str) -> Message:
        return {"event": "mark", "sequenceNumber": "4", "streamSid": self.stream_id, "mark": {"name": name}}

    def stop(self) -> Message:
        stop = {"accountSid": self.account_id, "callSid": self.call_id}
        return {"event": "stop", "sequenceNumber": "9", "streamSid": self.stream_id, "stop": stop}

    def check_bot_audio(self, message: Any) -> None:
        assert message["streamSid"] == self.stream_id


class SignalWire(Twilio):
    """
    Twilio's, but for the shape of ids, more codecs and fewer fields.

    https://developer.signalwire.com/compatibility-api/cxml/voice/stream
    """

    name = "signalwire"
    own_call_id = "00000000-0000-4000-8000-0000000000c1"
    stream_id = "00000000-0000-4000-8000-0000000000d1"
    account_id = "00000000-0000-4000-8000-000000000001"

    def connected(self) -> list[Message]:
        return [{"event": "connected", "protocol": "Call", "version": "0.2.0"}]

    def start(self) -> Message:
        message = super().start()
        if self.wire.sample_rate != 8000:
            wire = {"encoding": "audio/x-L16", "sampleRate": self.wire.sample_rate, "channels": 1}
            message["start"]["mediaFormat"] = wire
        return message

    def media(self, payload: Any, chunk: int = 1, track: str = "inbound") -> Message:
        message = super().media(payload, chunk, track)
        del message["streamSid"]
        return message

    def digit(self, key: str) -> Message:
        return {"event": "dtmf", "streamSid": self.stream_id, "dtmf": {"duration": 100, "digit": key}}

    def played(self, name: str) -> Message:
        return {"event": "mark", "streamSid": self.stream_id, "mark": {"name": name}}

    def stop(self) -> Message:
        return {"event": "stop", "sequenceNumber": "9"}

    def nothings(self) -> list[Message]:
        return [*super().nothings(), {"event": "clear", "streamSid": self.stream_id}]


class Telnyx(Dialect):
    """https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket"""

    name = "telnyx"
    own_call_id = "v3:MdI91X4lWFEs7IgbBEOT9M4AigoY08M0WWZFISt1Yw2axZ_IiE4pqg"
    stream_id = "32DE0DEA-53CB-4B21-89A4-9E1819C043BC"
    account_id = "3e6f995f-85f7-4705-9741-53b116d28237"

    def form(self) -> dict[str, str]:
        """https://developers.telnyx.com/docs/voice/programmable-voice/texml-instruction-fetching"""
        return {
            "AccountSid": self.account_id,
            "CallSid": self.call_id,
            "CallSidLegacy": "428c31b6-7af4-4bcb-b7f5-5013ef9657c1",
            "CallStatus": "ringing",
            "CallerId": FROM_NUMBER,
            "CallingPartyType": "pstn",
            "ConnectionId": "1494404757140276705",
            "From": FROM_NUMBER,
            "FromSipUri": f"{FROM_NUMBER}@sip.telnyx.com",
            "To": TO_NUMBER,
            "ToSipUri": f"{TO_NUMBER}@sip.telnyx.com",
        }

    def initiated(self) -> Message:
        """https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks"""
        return self.event("call.initiated", direction="incoming", state="parked", **{"from": FROM_NUMBER})

    def event(self, kind: str, **details: Any) -> Message:
        payload = {
            "call_control_id": self.call_id,
            "connection_id": "1494404757140276705",
            "call_leg_id": "428c31b6-7af4-4bcb-b7f5-5013ef9657c2",
            "call_session_id": "428c31b6-abf3-3bc1-b7f4-5013ef9657c3",
            "client_state": None,
            "to": TO_NUMBER,
            **details,
        }
        data = {
            "record_type": "event",
            "event_type": kind,
            "id": f"0ccc7b54-4df3-4bca-a65a-{kind.encode().hex()[-12:]}",
            "occurred_at": "2026-01-01T00:00:00.000000Z",
            "payload": payload,
        }
        return {"data": data, "meta": {"attempt": 1, "delivered_to": "https://voice.example.com/telnyx"}}

    def connected(self) -> list[Message]:
        return [{"event": "connected", "version": "1.0.0"}]

    def start(self) -> Message:
        return {
            "event": "start",
            "sequence_number": "1",
            "stream_id": self.stream_id,
            "start": {
                "user_id": self.account_id,
                "call_control_id": self.call_id,
                "call_session_id": "ff55a038-6f5d-11ef-9692-02420aeffb1f",
                "from": FROM_NUMBER,
                "to": TO_NUMBER,
                "tags": [],
                "client_state": "aGVsbG8=",
                "custom_parameters": self.parameters,
                "media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1},
                **self.details,
            },
        }

    def media(self, payload: Any, chunk: int = 1, track: str = "inbound") -> Message:
        media = {"track": track, "chunk": str(chunk), "timestamp": str(20 * chunk), "payload": payload}
        return {"event": "media", "sequence_number": str(chunk + 1), "stream_id": self.stream_id, "media": media}

    def digit(self, key: str) -> Message:
        when = "2026-01-01T00:00:00.000000Z"
        ids = {"stream_id": self.stream_id, "occurred_at": when, "sequence_number": "5"}
        return {"event": "dtmf", **ids, "dtmf": {"digit": key}}

    def played(self, name: str) -> Message:
        return {"event": "mark", "stream_id": self.stream_id, "sequence_number": "5", "mark": {"name": name}}

    def stop(self) -> Message:
        stop = {"user_id": self.account_id, "call_control_id": self.call_id}
        return {"event": "stop", "sequence_number": "9", "stream_id": self.stream_id, "stop": stop}

    def nothings(self) -> list[Message]:
        error = {"code": 100004, "title": "invalid_media", "detail": "of the bot's"}
        return [*super().nothings(), {"event": "error", "stream_id": self.stream_id, "payload": error}]

    def check_bot_audio(self, message: Any) -> None:
        assert message.keys() == {"event", "media"}


class Plivo(Dialect):
    """https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-reference"""

    name = "plivo"
    own_call_id = "12345678-1234-4234-8234-123456789abc"
    stream_id = "87654321-1234-4234-8234-cba987654321"
    account_id = "MAXXXXXXXXXXXXXXXXXX"
    bot_events = ("playAudio", "checkpoint", "clearAudio")

    def form(self) -> dict[str, str]:
        """https://www.plivo.com/docs/voice/concepts/callbacks"""
        return {
            "ALegUUID": self.call_id,
            "BillRate": "0.0085",
            "CallStatus": "ringing",
            "CallUUID": self.call_id,
            "CallerName": FROM_NUMBER,
            "Direction": "inbound",
            "Event": "StartApp",
            # Without a plus, as Plivo writes them.
            "From": FROM_NUMBER[1:],
            "To": TO_NUMBER[1:],
        }

    def connected(self) -> list[Message]:
        return []

    def start(self) -> Message:
        headers = ";".join(f"{name}={value}" for name, value in self.parameters.items()) or "{}"
        return {
            "event": "start",
            "sequenceNumber": 1,
            "start": {
                "callId": self.call_id,
                "streamId": self.stream_id,
                "accountId": self.account_id,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000},
                **self.details,
            },
            "extra_headers": headers,
        }

    def media(self, payload: Any, chunk: int = 1, track: str = "inbound") -> Message:
        media = {"track": track, "timestamp": str(1705312200000 + 20 * chunk), "chunk": chunk, "payload": payload}
        ids = {"sequenceNumber": chunk + 1, "streamId": self.stream_id}
        return {"event": "media", **ids, "media": media, "extra_headers": "{}"}

    def digit(self, key: str) -> Message:
        dtmf = {"track": "inbound", "digit": key, "timestamp": "1705312250000"}
        return {"event": "dtmf", "sequenceNumber": 50, "streamId": self.stream_id, "dtmf": dtmf}

    def played(self, name: str) -> Message:
        return {"event": "playedStream", "sequenceNumber": 75, "streamId": self.stream_id, "name": name}

    def stop(self) -> Message:
        # Only older libraries know it: https://github.com/plivo/plivo-stream-sdk-python
        return {"event": "stop", "sequenceNumber": 90, "streamId": self.stream_id, "stop": {"reason": "hangup"}}

    def nothings(self) -> list[Message]:
        cleared = {"event": "clearedAudio", "sequenceNumber": 80, "streamId": self.stream_id}
        return [*super().nothings(), cleared, {"event": "incorrectPayload"}]

    def mark_name(self, message: Message) -> str:
        assert message["streamId"] == self.stream_id
        return str(message["name"])

    def check_bot_audio(self, message: Any) -> None:
        media = message["media"]
        assert (media["contentType"], media["sampleRate"]) == ("audio/x-mulaw", 8000)


class Exotel(Dialect):
    """https://developer.exotel.com/docs/agentstream/websocket-protocol"""

    name = "exotel"
    own_call_id = "d42ad85d64b32be1eb7bcb9e2bd01a1b"
    stream_id = "MZ00000000000000000000000000000002"
    account_id = "wsvoice1"
    default_wire = linear(8000)
    frame_ms = 100
    has_tracks = False

    def form(self) -> dict[str, str]:
        """https://developer.exotel.com/docs/agentstream/stream-voicebot-applet"""
        return {
            "CallSid": self.call_id,
            "CallFrom": FROM_NUMBER,
            "CallTo": TO_NUMBER,
            "Direction": "incoming",
            "Created": "Thu, 01 Jan 2026 10:00:00",
            "DialWhomNumber": "",
            "flow_id": "281192",
            "tenant_id": "129654",
            "From": FROM_NUMBER,
            "To": TO_NUMBER,
            "CurrentTime": "2026-01-01 10:00:01",
        }

    def connected(self) -> list[Message]:
        return [{"event": "connected"}]

    def start(self) -> Message:
        return {
            "event": "start",
            "sequence_number": "1",
            "stream_sid": self.stream_id,
            "start": {
                "stream_sid": self.stream_id,
                "call_sid": self.call_id,
                "account_sid": self.account_id,
                "from": FROM_NUMBER,
                "to": TO_NUMBER,
                "custom_parameters": self.parameters,
                "media_format": {
                    "encoding": "audio/x-raw",
                    "sample_rate": str(self.wire.sample_rate),
                    "bit_rate": "128kbps",
                },
                **self.details,
            },
        }

    def media(self, payload: Any, chunk: int = 1, track: str = "inbound") -> Message:
        media = {"chunk": str(chunk), "timestamp": str(100 * chunk), "payload": payload}
        return {"event": "media", "sequence_number": str(chunk + 1), "stream_sid": self.stream_id, "media": media}

    def digit(self, key: str) -> Message:
        dtmf = {"digit": key, "duration": "100"}
        return {"event": "dtmf", "sequence_number": "7", "stream_sid": self.stream_id, "dtmf": dtmf}

    def played(self, name: str) -> Message:
        return {"event": "mark", "sequence_number": "15", "stream_sid": self.stream_id, "mark": {"name": name}}

    def stop(self) -> Message:
        stop = {"call_sid": self.call_id, "account_sid": self.account_id, "reason": "callended"}
        return {"event": "stop", "sequence_number": "20", "stream_sid": self.stream_id, "stop": stop}

    def check_bot_audio(self, message: Any) -> None:
        assert message["stream_sid"] == self.stream_id
        assert len(base64.b64decode(message["media"]["payload"])) % 320 == 0


class Bandwidth(Dialect):
    """https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/startStream/"""

    name = "bandwidth"
    own_call_id = "c-d45a41e5-bcb12581-b18d-4bdc-9874-6273a0ad0d5f"
    stream_id = "s-00000000-0000-4000-8000-0000000000b1"
    account_id = "5500000"
    webhook_body = "json"
    has_keys = False
    has_marks = False
    name_keys = ("eventType", "eventType")
    bot_events = ("playAudio", "", "clear")

    def form(self) -> dict[str, str]:
        """https://dev.bandwidth.com/docs/voice/webhooks/initiate"""
        return {
            "eventType": "initiate",
            "eventTime": "2026-01-01T10:00:00.000Z",
            "accountId": self.account_id,
            "applicationId": "04e88489-df02-4e34-a0ee-27a91849555f",
            "from": FROM_NUMBER,
            "to": TO_NUMBER,
            "direction": "inbound",
            "callId": self.call_id,
            "callUrl": f"https://voice.bandwidth.com/api/v2/accounts/{self.account_id}/calls/{self.call_id}",
            "startTime": "2026-01-01T10:00:00.000Z",
        }

    def connected(self) -> list[Message]:
        return []

    def start(self) -> Message:
        wire = {"encoding": "audio/PCMU", "sampleRate": 8000}
        metadata = {
            "accountId": self.account_id,
            "callId": self.call_id,
            "streamId": self.stream_id,
            "streamName": "wsvoice",
            "tracks": [{"name": "inbound", "mediaFormat": wire}],
            **self.details,
        }
        return {"eventType": "start", "metadata": metadata, "streamParams": self.parameters}

    def bad_start(self, content: Any) -> Message:
        return {"eventType": "start", "metadata": content}

    def media(self, payload: Any, chunk: int = 1, track: str = "inbound") -> Message:
        # At the top, and not inside of anything.
        return {"eventType": "media", "track": track, "payload": payload, "sequenceNumber": str(chunk)}

    def stop(self) -> Message:
        return {"eventType": "stop"}

    def check_bot_audio(self, message: Any) -> None:
        assert message.keys() == {"eventType", "media"}
        assert message["media"]["contentType"] == "audio/pcmu"


class Vonage(Dialect):
    """https://developer.vonage.com/en/voice/voice-api/concepts/websockets"""

    name = "vonage"
    own_call_id = "aaaaaaaa-bbbb-cccc-dddd-0123456789ab"
    account_id = ""
    webhook_body = "json"
    default_wire = linear(8000)
    has_tracks = False
    is_binary = True
    name_keys = ("event", "action")
    bot_events = ("audio", "notify", "clear")

    @property
    def stream_id(self) -> str:  # type: ignore[override]
        """A stream has no id of its own."""
        return self.call_id

    def form(self) -> dict[str, str]:
        """https://developer.vonage.com/en/voice/voice-api/webhook-reference#answer-webhook"""
        return {
            # Without a plus, as Vonage writes them.
            "to": TO_NUMBER[1:],
            "from": FROM_NUMBER[1:],
            "uuid": self.call_id,
            "conversation_uuid": "CON-00000000-0000-4000-8000-000000000001",
            "region_url": "https://api-us-3.vonage.com",
        }

    def connected(self) -> list[Message]:
        return []

    def start(self) -> Message:
        # The NCCO's headers stand beside the event; they alone say which call it is.
        headers = {"call_id": self.call_id, **self.parameters, **self.details}
        return {"event": "websocket:connected", "content-type": f"audio/l16;rate={self.wire.sample_rate}", **headers}

    def bad_start(self, content: Any) -> Message:
        return {"event": "websocket:connected", "content-type": content}

    def digit(self, key: str) -> Message:
        return {"event": "websocket:dtmf", "digit": key, "duration": 260}

    def played(self, name: str) -> Message:
        return {"event": "websocket:notify", "payload": {"name": name}}

    def stop(self) -> Message:
        return {"event": "websocket:disconnected"}

    def nothings(self) -> list[Message]:
        return [*super().nothings(), {"event": "websocket:cleared"}]

    def mark_name(self, message: Message) -> str:
        return str(message["payload"]["name"])

    def check_bot_audio(self, message: Any) -> None:
        # 20 ms, neither more nor less.
        assert len(message) == self.wire.sample_rate // 25


class Asterisk(Dialect):
    """
    As a real one was heard to speak: ``tests/golden/asterisk``.

    https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/
    """

    name = "asterisk"
    own_call_id = "1795274491.2"
    stream_id = "WebSocket/wsvoice/0x7f58500194a0"
    account_id = ""
    has_webhook = False
    has_tracks = False
    is_binary = True
    subprotocol = "media"
    name_keys = ("event", "command")
    bot_events = ("audio", "MARK_MEDIA", "FLUSH_MEDIA")

    @property
    def format(self) -> str:
        if self.wire in (MULAW, ALAW):
            return "ulaw" if self.wire is MULAW else "alaw"
        return "slin" if self.wire.sample_rate == 8000 else f"slin{self.wire.sample_rate // 1000}"

    @property
    def frame_bytes(self) -> int:
        return len(self.wire.encode(bytes(self.wire.sample_rate // 25)))

    def connected(self) -> list[Message]:
        return []

    def start(self) -> Message:
        return {
            "event": "MEDIA_START",
            "connection_id": "wsvoice",
            "channel": self.stream_id,
            "channel_id": self.call_id,
            "format": self.format,
            "optimal_frame_size": self.frame_bytes,
            "ptime": 20,
            "channel_variables": {
                "FROM": FROM_NUMBER,
                "TO": TO_NUMBER,
                "DIALEDPEERNUMBER": f"wsvoice/c({self.format})f(json)",
                "MEDIA_WEBSOCKET_CONNECTION_ID": "wsvoice",
                "MEDIA_WEBSOCKET_OPTIMAL_FRAME_SIZE": str(self.frame_bytes),
                **self.parameters,
            },
            **self.details,
        }

    def bad_start(self, content: Any) -> Message:
        return {"event": "MEDIA_START", "channel": self.stream_id, "format": content}

    def digit(self, key: str) -> Message:
        return {"event": "DTMF_END", "channel_id": self.call_id, "digit": key}

    def played(self, name: str) -> Message:
        return {"event": "MEDIA_MARK_PROCESSED", "channel_id": self.call_id, "correlation_id": name}

    def stop(self) -> Message:
        return HANG_UP

    def nothings(self) -> list[Message]:
        status = {
            "queue_length": 0,
            "xon_level": 800,
            "xoff_level": 900,
            "queue_full": False,
            "bulk_media": False,
            "media_paused": False,
        }
        told = [
            {"event": "STATUS", **status},
            {"event": "MEDIA_XOFF"},
            {"event": "MEDIA_XON"},
            {"event": "QUEUE_DRAINED"},
        ]
        return [*super().nothings(), *({**each, "channel_id": self.call_id} for each in told)]

    def mark_name(self, message: Message) -> str:
        return str(message["correlation_id"])

    def check_bot_audio(self, message: Any) -> None:
        # What is beside whole frames would be dropped.
        assert message
        assert len(message) % self.frame_bytes == 0


DIALECTS: Sequence[type[Dialect]] = (Twilio, Telnyx, Plivo, Exotel, SignalWire, Bandwidth, Vonage, Asterisk)
#: Those whose calls a webhook announces.
ANNOUNCED = [each for each in DIALECTS if each.has_webhook]


class Line:
    """The carrier's end of one stream, in any dialect; marks come back at once, as if all had been played."""

    def __init__(self, socket: ClientConnection, dialect: Dialect) -> None:
        self.socket = socket
        self.dialect = dialect
        self.messages: list[Any] = []
        self._chunk = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        mark = self.dialect.bot_events[1]
        while True:
            try:
                came = await self.socket.recv()
                message = came if isinstance(came, bytes) else json.loads(came)
                self.messages.append(message)
                if self.dialect.name_of(message) == mark:
                    await self.send(self.dialect.played(self.dialect.mark_name(message)))
            except websockets.ConnectionClosed:
                return

    async def send(self, *messages: Message | str | bytes) -> None:
        for message in messages:
            if message == HANG_UP:
                await self.socket.close()
            else:
                await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def start(self) -> None:
        await self.send(*self.dialect.handshake())

    def pieces(self, pcm: bytes) -> list[bytes]:
        """Cut s16le audio at the wire's rate as the provider does."""
        size = 2 * self.dialect.wire.sample_rate * self.dialect.frame_ms // 1000
        return [pcm[at : at + size] for at in range(0, len(pcm), size)]

    def spoken(self, pcm: bytes, track: str = "inbound") -> list[Message | bytes]:
        """Return the messages of a piece of speech."""
        messages: list[Message | bytes] = []
        for piece in self.pieces(pcm):
            self._chunk += 1
            messages.append(self.dialect.audio(piece, self._chunk, track))
        return messages

    async def speak(self, pcm: bytes, *, paced: bool = False) -> None:
        begin = time.monotonic()
        for index, message in enumerate(self.spoken(pcm)):
            if paced:
                await asyncio.sleep(max(0.0, begin + index * self.dialect.frame_ms / 1000 - time.monotonic()))
            await self.send(message)

    async def press(self, key: str) -> None:
        await self.send(self.dialect.digit(key))

    def of(self, event: str) -> list[Any]:
        return [message for message in self.messages if self.dialect.name_of(message) == event]

    def heard(self) -> bytes:
        """All audio that came, as s16le at the wire's rate."""
        audio = self.of(self.dialect.bot_events[0])
        for message in audio:
            self.dialect.check_bot_audio(message)
        return b"".join(self.dialect.wire.decode(self.dialect.payload_of(message)) for message in audio)

    async def until_said(self, timeout_s: float = 10) -> None:
        """Wait for the mark behind the bot's words, or where there are none for the words."""
        wanted = self.dialect.bot_events[1 if self.dialect.has_marks else 0]
        async with asyncio.timeout(timeout_s):
            while not self.of(wanted):
                await asyncio.sleep(0.005)

    async def closed(self, timeout_s: float = 10) -> tuple[int | None, str | None]:
        """Wait until the server has closed; return its code and reason."""
        async with asyncio.timeout(timeout_s):
            await self.socket.wait_closed()
            await self._reader
        return self.socket.close_code, self.socket.close_reason


@asynccontextmanager
async def on_line(url: str, dialect: Dialect, *, start: bool = True, **options: Any) -> AsyncIterator[Line]:
    """Connect a stream as the provider does, and start it."""
    if dialect.subprotocol:
        options["subprotocols"] = [dialect.subprotocol]
    async with websockets.connect(url, compression=None, ping_interval=None, **options) as socket:
        assert (socket.subprotocol or "") == dialect.subprotocol
        line = Line(socket, dialect)
        if start:
            await line.start()
        yield line
