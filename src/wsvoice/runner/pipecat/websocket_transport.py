"""
The transport of ``-t websocket``, for plain WebSocket clients, and a bot's arguments for one.

Also what the three plain transports share: messages that a serializer cannot read are counted and left out, a WAV
header is removed, and the session timeout waits for silence.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from loguru import logger
from pipecat.frames.frames import (
    CancelWorkerFrame,
    Frame,
    InputAudioRawFrame,
    InputTransportMessageFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputTransportMessageFrame,
    OutputTransportMessageUrgentFrame,
    StartFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.runner.types import WebSocketRunnerArguments
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.base_serializer import FrameSerializer
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.websocket.fastapi import (
    FastAPIWebsocketClient,
    FastAPIWebsocketInputTransport,
    FastAPIWebsocketOutputTransport,
    FastAPIWebsocketParams,
    FastAPIWebsocketTransport,
)

from wsvoice.call import Call
from wsvoice.runner.activity import Activity
from wsvoice.runner.pacing import InputLimit
from wsvoice.runner.pipecat import is_supported
from wsvoice.runner.pipecat.call_arguments import ParamsT, ReadyTransport
from wsvoice.runner.pipecat.call_transport import has_handler, waiting_frames
from wsvoice.runner.pipecat.resamplers import UtteranceResampler, use_resampler

if is_supported("evals"):
    from pipecat.evals.fastapi_transport import EvalFastAPIWebsocketTransport
    from pipecat.evals.serializer import EvalConnectionFlags, EvalSerializer, parse_eval_connect
    from pipecat.evals.transport import EvalTransportParams

if TYPE_CHECKING:
    from wsvoice.runner.clients import ClientSession, ClientSocket


def allowed_origins() -> list[str]:
    """Return the origins that pipecat's ``PIPECAT_ALLOWED_ORIGINS`` allows; empty for all of them."""
    return FastAPIWebsocketParams().allowed_origins


# -- Messages --

#: How far a client's audio may be ahead of real time, in seconds. A program may send a recording, and pipecat's own
#: clients send twice as fast as they speak.
CLIENT_AHEAD_S = 60.0
#: The rates that audio may have, in hertz.
MIN_RATE, MAX_RATE = 8000, 48000
#: How many frames may wait in the pipeline before the next one is read; five seconds of audio in pieces of 20 ms.
MAX_WAITING_FRAMES = 250

#: The first byte of pipecat's protobuf frames: fields 1 to 5, of type bytes.
_FRAME_TAGS = frozenset(field << 3 | 2 for field in range(1, 6))


class ClientSerializer(ProtobufFrameSerializer):
    """
    pipecat's protobuf serializer, which its client libraries use.

    Frames without a message are left out without a warning each, and an unreadable message is an error instead of a
    line in the log.
    """

    async def serialize(self, frame: Frame) -> str | bytes | None:
        """Return the message for a frame, or ``None``."""
        own = isinstance(frame, (OutputTransportMessageFrame, OutputTransportMessageUrgentFrame))
        if not own and type(frame) not in self.SERIALIZABLE_TYPES:
            return None
        return await super().serialize(frame)

    async def deserialize(self, data: str | bytes) -> Frame | None:
        """
        Return the frame of a message.

        Raises:
            ValueError: If it has none.
        """
        if isinstance(data, str) or data[:1] == b"" or data[0] not in _FRAME_TAGS:
            raise ValueError("it is not a protobuf frame")
        return await super().deserialize(data)


def without_wav_header(frame: InputAudioRawFrame) -> InputAudioRawFrame:
    """Return the frame with bare PCM; a client with ``add_wav_header`` sends a whole WAV file in each."""
    if frame.audio[:4] != b"RIFF" or frame.audio[8:12] != b"WAVE":
        return frame
    try:
        with wave.open(io.BytesIO(frame.audio)) as wav:
            if wav.getsampwidth() != 2:
                return frame
            audio = wav.readframes(wav.getnframes())
            return InputAudioRawFrame(audio, wav.getframerate(), wav.getnchannels())
    except (wave.Error, EOFError):
        # Audio that happens to begin like a header.
        return frame


class FrameReceiver:
    """
    Pushes the frames of received messages into the pipeline, no faster than real time and the bot allow.

    Args:
        transport: The input that receives them.
        serializer: Reads them; without one they are left out.
        activity: Notes the activity.
        note_fault: Counts what is left out; by default it logs the first of each kind.
        is_gone: Whether the other end has left; then nothing is held back any more.
    """

    def __init__(
        self,
        transport: BaseInputTransport,
        serializer: FrameSerializer | None,
        activity: Activity,
        is_gone: Callable[[], bool],
        note_fault: Callable[[str, str], None] | None = None,
    ) -> None:
        self._transport = transport
        self._serializer = serializer
        self._activity = activity
        self._is_gone = is_gone
        self._note_fault = note_fault or self._log_fault
        self._faults: set[str] = set()
        self._input_limit = InputLimit(CLIENT_AHEAD_S)

    async def take(self, message: Any) -> None:
        """Handle a message; an unreadable one must not keep the bot from receiving those that follow."""
        if self._serializer is None:
            return
        try:
            frame = await self._serializer.deserialize(message)
        except Exception as error:  # noqa: BLE001 - a serializer may raise anything
            reader = type(self._serializer).__name__
            self._note_fault("unreadable", f"{reader} cannot read it: {str(error)[:200]}")
            return
        if isinstance(frame, InputAudioRawFrame):
            frame = without_wav_header(frame)
            if not (MIN_RATE <= frame.sample_rate <= MAX_RATE and 1 <= frame.num_channels <= 2):
                what = f"audio of {frame.sample_rate} Hz on {frame.num_channels} channels"
                self._note_fault("unreadable", what)
                return
        if frame is not None:
            await self._push(frame)

    def _log_fault(self, kind: str, message: str) -> None:
        if kind not in self._faults:
            self._faults.add(kind)
            logger.warning("ignored a bad message ({}): {}; more of its kind are ignored too", kind, message)

    async def _push(self, frame: Frame) -> None:
        """Push a frame into the pipeline, as pipecat's own transports do."""
        while waiting_frames(self._transport) > MAX_WAITING_FRAMES and not self._is_gone():  # noqa: ASYNC110 - many queues
            await asyncio.sleep(0.02)
        if isinstance(frame, InputAudioRawFrame):
            if not self._input_limit.admits(time.monotonic(), frame.num_frames / frame.sample_rate):
                self._note_fault("ahead", f"its audio is more than {CLIENT_AHEAD_S:g} s ahead of the clock")
                return
            self._activity.hear(frame.audio)
            await self._transport.push_audio_frame(frame)
            return
        self._activity.note()
        if isinstance(frame, InputTransportMessageFrame):
            await self._transport.broadcast_frame(InputTransportMessageFrame, message=frame.message)
        else:
            await self._transport.push_frame(frame)


# -- The transport --


class ClientInputTransport(FastAPIWebsocketInputTransport):
    """The client's messages, as frames."""

    _transport: ClientTransport
    _client: FastAPIWebsocketClient
    _params: FastAPIWebsocketParams

    async def _receive_messages(self) -> None:
        socket, activity = self._transport.socket, self._transport.activity
        receiver = FrameReceiver(self, self._params.serializer, activity, socket.gone.is_set, socket.note_fault)
        async for message in self._client.receive():
            await receiver.take(message)
        if self._client.is_closing:
            return
        await self._client.trigger_client_disconnected()
        if not has_handler(self._transport, "on_client_disconnected"):
            # Nothing else would end the pipeline.
            await self.push_frame(CancelWorkerFrame(reason="the client left"))

    if is_supported("session-timeout"):

        async def _monitor_websocket(self, timeout: int) -> None:
            await self._transport.activity.report_silences(timeout, self._client.trigger_client_timeout)


class ActivityOutputTransport(BaseOutputTransport):
    """The output of a plain transport: it notes the bot's audio as activity."""

    _transport: Any

    async def set_transport_ready(self, frame: StartFrame) -> None:
        """Begin to send, with a resampler of little delay."""
        await super().set_transport_ready(frame)
        use_resampler(self, UtteranceResampler)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        """Send one piece of audio, with a WAV header if the params ask for one."""
        self._transport.activity.play(frame.audio, self.sample_rate)
        return await super().write_audio_frame(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, InterruptionFrame):
            self._transport.activity.cut()
        await super().process_frame(frame, direction)


class ClientOutputTransport(ActivityOutputTransport, FastAPIWebsocketOutputTransport):
    """The bot's frames, as messages."""

    _transport: ClientTransport


class ClientTransport(FastAPIWebsocketTransport):
    """
    The ready-made transport of a plain client.

    It is a ``FastAPIWebsocketTransport`` with all its params and events. The default serializer is pipecat's protobuf
    one; ``session_timeout`` counts seconds without activity, and fires again after the next such silence.
    """

    def __init__(self, socket: ClientSocket, params: FastAPIWebsocketParams) -> None:
        super().__init__(cast(Any, socket), params)
        self.socket = socket
        self.activity = Activity()
        self._input = ClientInputTransport(self, self._client, params)
        self._output = ClientOutputTransport(self, self._client, params)


# -- The arguments --


@dataclass
class ClientArguments(ReadyTransport[FastAPIWebsocketParams, FastAPIWebsocketTransport], WebSocketRunnerArguments):
    """
    A bot's argument for a plain client: pipecat's arguments, and a ready-made transport.

    Attributes:
        transport: The :class:`ClientTransport` (pipecat's own if that is not supported), built on first use.
    """

    params_kind = FastAPIWebsocketParams
    params_names = ("websocket",)

    session: ClientSession = field(kw_only=True, repr=False)

    @property
    def call(self) -> Call:
        """The session as a call without numbers, for bots that also serve the telephone."""
        body = self.body if isinstance(self.body, dict) else {}
        parameters = {str(name): str(value) for name, value in body.items()}
        return Call(provider="websocket", call_id=self.session_id or "", parameters=parameters)

    def _make_transport(self, params: FastAPIWebsocketParams) -> FastAPIWebsocketTransport:
        params = with_serializer(params)
        try:
            if is_supported("client-transport"):
                return ClientTransport(self.session.socket, params)
            return FastAPIWebsocketTransport(self.websocket, params)
        except ValueError:
            # The params do not allow the client's origin: it is turned away with 1008.
            self.session.refused = True
            raise


@dataclass
class EvalArguments(WebSocketRunnerArguments):
    """A bot's argument for an eval harness; ``create_transport`` is pipecat's own."""

    @cached_property
    def transport(self) -> EvalFastAPIWebsocketTransport:
        """pipecat's eval transport, with audio both ways, for bots that do not call ``create_transport``."""
        assert self.call_data is not None
        return EvalFastAPIWebsocketTransport(
            self.websocket,
            EvalTransportParams(audio_in_enabled=True, audio_out_enabled=True, serializer=EvalSerializer()),
            EvalConnectionFlags.model_validate(self.call_data.body),
        )


async def client_arguments(session: ClientSession) -> WebSocketRunnerArguments:
    """Build a bot's arguments, as pipecat's runner would."""
    websocket = cast(Any, session.socket)
    common: dict[str, Any] = {"websocket": websocket, "body": session.body, "session_id": session.session_id}
    if session.is_eval:
        transport_type, call_data = await parse_telephony_websocket(websocket)
        return EvalArguments(transport_type=transport_type, call_data=call_data, **common)
    return ClientArguments(transport_type="websocket", session=session, **common)


def is_eval_connect(raw: str | bytes) -> bool:
    """Whether a first message comes from ``pipecat eval``."""
    if not is_supported("evals") or not isinstance(raw, str) or "eval-connect" not in raw:
        return False
    try:
        return parse_eval_connect(json.loads(raw)) is not None
    except (ValueError, RecursionError):
        return False


def with_serializer(params: ParamsT) -> ParamsT:
    """Return params with a serializer: pipecat's protobuf one, unless the bot chose another."""
    if getattr(params, "serializer", None) is not None:
        return params
    kind = ClientSerializer if is_supported("client-transport") else ProtobufFrameSerializer
    return params.model_copy(update={"serializer": kind()})
