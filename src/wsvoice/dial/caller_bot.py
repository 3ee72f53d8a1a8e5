"""
A caller that is itself a bot, so that two bots talk to each other over a provider's protocol.

Its transport is pipecat's WebSocket client, with the simulated call instead of a socket: what the bot says leaves in
the provider's media messages, and what it hears has been through the provider's playback buffer. This is the only
module of the simulated caller that imports pipecat.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipecat.frames.frames import (
    AudioRawFrame,
    CancelWorkerFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputDTMFFrame,
    OutputDTMFUrgentFrame,
    StartFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.runner.types import CallData, RunnerArguments
from pipecat.serializers.base_serializer import FrameSerializer
from pipecat.transports.websocket.client import (
    WebsocketClientInputTransport,
    WebsocketClientOutputTransport,
    WebsocketClientParams,
    WebsocketClientSession,
    WebsocketClientTransport,
)
from pipecat.utils.shared import acquires, releases

from wsvoice.audio import Resampler
from wsvoice.bot_loading import BotFunction, load_bot
from wsvoice.call import Call
from wsvoice.dial.caller_bot_audio import CallerBotAudio
from wsvoice.isolation import IsolatedBot, current_bot, describe_failure

#: How long the caller may go on working after its call has ended.
EXIT_TIMEOUT_S = 5.0
#: How often it is cancelled after that, and how long each time may take.
CANCELLATIONS, CANCEL_TIMEOUT_S = 3, 1.0


class CallerSerializer(FrameSerializer):
    """Converts between pipecat's frames and 16-bit audio at the call's sample rates."""

    def __init__(self, audio: CallerBotAudio) -> None:
        super().__init__()
        self._audio = audio
        self._in_rate = audio.heard_rate
        self._decoder = Resampler(audio.heard_rate, audio.heard_rate)
        self._out_rate = audio.sample_rate
        self._encoder = Resampler(audio.sample_rate, audio.sample_rate)

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Take the pipeline's input rate."""
        if setup.audio_in_sample_rate != self._in_rate:
            self._in_rate = setup.audio_in_sample_rate
            self._decoder = Resampler(self._audio.heard_rate, self._in_rate)

    async def deserialize(self, data: str | bytes) -> Frame | None:
        """Return the frame for what was heard."""
        pcm = self._decoder.process(data if isinstance(data, bytes) else b"")
        return InputAudioRawFrame(audio=pcm, sample_rate=self._in_rate, num_channels=1) if pcm else None

    async def serialize(self, frame: Frame) -> str | bytes | None:
        """Return the audio of a frame; ``None`` for frames without audio."""
        if not isinstance(frame, AudioRawFrame):
            return None
        if frame.sample_rate != self._out_rate:
            self._out_rate = frame.sample_rate
            self._encoder = Resampler(self._out_rate, self._audio.sample_rate)
        return self._encoder.process(frame.audio) or None

    def reset(self) -> None:
        """Drop what the resampler holds back."""
        self._encoder.reset()


class CallerSession(WebsocketClientSession):
    """pipecat's WebSocket session, which is the call here: connected at once, closed when somebody hangs up."""

    def __init__(
        self, audio: CallerBotAudio, params: WebsocketClientParams, callbacks: Any, transport_name: str
    ) -> None:
        super().__init__("wsvoice:caller", params, callbacks, transport_name)
        self.audio = audio
        self._heard: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ready = asyncio.Event()
        self._connected = False

    @acquires("connection")
    async def connect(self) -> None:
        """Connect, which takes no time."""
        self._connected = True
        self.audio.on_heard(self._heard.put_nowait)
        self._client_task = self.task_manager.create_task(self._hand_on(), f"{self}::hand_on")
        await self._callbacks.on_connected(cast(Any, self))

    @releases("connection")
    async def disconnect(self) -> None:
        """Hang up."""
        if self._connected:
            self._connected = False
            self.audio.hang_up()
            await self.task_manager.cancel_task(self._client_task)

    async def send(self, message: str | bytes) -> bool:
        """Say 16-bit samples, and return when it is time for the next ones."""
        if isinstance(message, bytes) and self._connected:
            await self.audio.say(message)
        return self._connected

    @property
    def is_connected(self) -> bool:
        """Whether the call goes on."""
        return self._connected

    def close(self) -> None:
        """Tell the pipeline that the other end has hung up."""
        self._heard.put_nowait(None)

    def listen(self) -> None:
        """Pass on what was heard from the start, now that the pipeline is ready."""
        self._ready.set()

    async def _hand_on(self) -> None:
        # Audio before its start breaks pipecat's input for good.
        await self._ready.wait()
        while (pcm := await self._heard.get()) is not None:
            await self._callbacks.on_message(cast(Any, self), pcm)
        self._connected = False
        self.audio.fall_silent()
        await self._callbacks.on_disconnected(cast(Any, self))


class CallerInputTransport(WebsocketClientInputTransport):
    """What the caller hears, as frames."""

    _session: CallerSession

    async def set_transport_ready(self, frame: StartFrame) -> None:
        """Begin to pass on what was heard."""
        await super().set_transport_ready(frame)
        self._session.listen()


class CallerOutputTransport(WebsocketClientOutputTransport):
    """What the caller says, paced by the call's clock and not by pipecat's."""

    _params: WebsocketClientParams
    _session: CallerSession

    async def set_transport_ready(self, frame: StartFrame) -> None:
        """Begin to speak and to hear."""
        await super().set_transport_ready(frame)
        self._session.listen()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Handle a frame; an interruption drops what has not been said yet."""
        if isinstance(frame, InterruptionFrame):
            cast(CallerSerializer, self._params.serializer).reset()
            self._session.audio.fall_silent()
        await super().process_frame(frame, direction)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        """Say a piece of audio; false if the call is over."""
        return self._session.is_connected and await self._write_frame(frame)

    def _supports_native_dtmf(self) -> bool:
        return True

    async def _write_dtmf_native(self, frame: OutputDTMFFrame | OutputDTMFUrgentFrame) -> None:
        for key in frame.buttons or ():
            self._session.audio.press(str(key.value))


class CallerTransport(WebsocketClientTransport):
    """
    The transport of a caller's bot.

    Besides a client's events (``on_connected``, ``on_disconnected``) it has a server's (``on_client_connected``,
    ``on_client_disconnected``), so that one bot can play both parts.
    """

    def __init__(self, audio: CallerBotAudio) -> None:
        params = WebsocketClientParams(
            audio_in_enabled=True, audio_out_enabled=True, add_wav_header=False, serializer=CallerSerializer(audio)
        )
        super().__init__("wsvoice:caller", params)
        self._session: CallerSession = CallerSession(audio, params, self._session._callbacks, self.name)
        self._register_event_handler("on_client_connected")
        self._register_event_handler("on_client_disconnected")

    def input(self) -> CallerInputTransport:
        """Return what the caller hears."""
        if self._input is None:
            self._input = CallerInputTransport(self, self._session, self._params)
        return cast(CallerInputTransport, self._input)

    def output(self) -> CallerOutputTransport:
        """Return what the caller says."""
        if self._output is None:
            self._output = CallerOutputTransport(self, self._session, self._params)
        return cast(CallerOutputTransport, self._output)

    def close(self) -> None:
        """Tell the pipeline that the call is over."""
        self._session.close()

    async def _on_connected(self, websocket: Any) -> None:
        await super()._on_connected(websocket)  # type: ignore[no-untyped-call]
        await self._call_event_handler("on_client_connected", websocket)

    async def _on_disconnected(self, websocket: Any) -> None:
        handled = any(self._event_handlers[name].handlers for name in ("on_disconnected", "on_client_disconnected"))
        await super()._on_disconnected(websocket)  # type: ignore[no-untyped-call]
        await self._call_event_handler("on_client_disconnected", websocket)
        if not handled and self._input is not None:
            # The pipeline has no handler for a hang-up.
            await self._input.push_frame(CancelWorkerFrame(reason="the other end hung up"))


@dataclass
class CallerArguments(RunnerArguments):
    """What a caller's bot is called with: also its transport, and the call that it places."""

    transport: CallerTransport
    call: Call


class CallerBot:
    """
    A caller's bot, from its file to its end.

    Args:
        spec: The bot, as for ``wsvoice run``.
        on_line: Called with each line of the traceback if it fails in the call.

    Raises:
        BotNotFoundError: If there is no such bot.
        BotImportError: If it fails while it is imported.
    """

    def __init__(self, spec: str, on_line: Callable[[str], None]) -> None:
        loaded = load_bot(spec)
        self._on_line = on_line
        self.name = loaded.name
        self._function: BotFunction = loaded.function
        self._file = str(loaded.path)
        self._transport: CallerTransport | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, audio: CallerBotAudio, call: Call) -> None:
        """Start the bot for `call`; it speaks and hears through `audio`."""
        self._transport = CallerTransport(audio)
        arguments = CallerArguments(
            transport=self._transport,
            call=call,
            call_data=CallData.model_validate(
                {
                    "stream_id": call.stream_id,
                    "call_id": call.call_id,
                    "from": call.from_number,
                    "to": call.to_number,
                    "body": dict(call.parameters),
                }
            ),
            body=dict(call.parameters),
            session_id=call.call_id,
        )
        self._task = asyncio.create_task(self._run(arguments, audio), name="wsvoice-caller-bot")

    async def finish(self, timeout_s: float = EXIT_TIMEOUT_S) -> None:
        """Tell it that the call is over, and wait for its end; it is cancelled if that takes too long."""
        if self._transport is None or self._task is None:
            return
        self._transport.close()
        for _ in range(CANCELLATIONS):
            await asyncio.wait([self._task], timeout=timeout_s)
            if self._task.done():
                return
            # A pipeline that is cancelled cleans up first, and may hang in one of its handlers.
            self._task.cancel()
            timeout_s = CANCEL_TIMEOUT_S
        self._on_line(f"the caller's bot {self.name} does not end")

    async def _run(self, arguments: CallerArguments, audio: CallerBotAudio) -> None:
        def fail(error: BaseException) -> None:
            for line in "".join(traceback.format_exception(error)).splitlines():
                self._on_line(line)
            own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._file]
            place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
            audio.hang_up(f"the caller's bot {self.name} {describe_failure(error)}{place}")

        current_bot.set(IsolatedBot(self.name, fail))
        try:
            await self._function(arguments)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - even if the bot exits, the call has a report
            fail(error)
        else:
            audio.hang_up()
