"""The ready-made transport of a call."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    CancelWorkerFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InputTransportStartAudioStreamingFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputDTMFFrame,
    OutputDTMFUrgentFrame,
    OutputTransportMessageFrame,
    OutputTransportMessageUrgentFrame,
    OutputTransportReadyFrame,
    SpeechControlParamsFrame,
    StartFrame,
    TTSAudioRawFrame,
    UserSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor, FrameProcessorSetup
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.websocket.fastapi import (
    FastAPIWebsocketCallbacks,
    FastAPIWebsocketClient,
    FastAPIWebsocketInputTransport,
    FastAPIWebsocketOutputTransport,
    FastAPIWebsocketParams,
    FastAPIWebsocketTransport,
)

from wsvoice.audio import peak
from wsvoice.call import Call
from wsvoice.errors import LocalProtocolError
from wsvoice.providers.events import Audio, Clear, Digit, Event, Mark, SendDigits
from wsvoice.runner.pacing import FRAME_S
from wsvoice.runner.pipecat import is_supported
from wsvoice.runner.pipecat.call_serializer import CallSerializer
from wsvoice.runner.pipecat.listeners import are_pushes_seen, is_audio_wanted_behind, is_processing_seen
from wsvoice.runner.pipecat.media_sender import CallMediaSender
from wsvoice.runner.pipecat.patches.frame_queue import put_in_a_callback
from wsvoice.runner.pipecat.resamplers import LowLatencyResampler, use_resampler

if TYPE_CHECKING:
    from wsvoice.runner.media_socket import MediaSocket
    from wsvoice.runner.pipecat.patches.input_vad import SpeechDetector

#: Audio leaves in pieces of this length.
FRAME_MS = round(FRAME_S * 1000)
#: An utterance is over after this long without new audio: what the resampler holds is sent, then a mark.
UTTERANCE_END_S = 0.06
#: How many of the caller's frames may wait in the pipeline; a minute of audio in pieces of 20 ms.
MAX_WAITING_FRAMES = 3000
#: How often they are counted, in frames.
COUNT_EVERY = 8
#: How many pending marks are kept: a carrier that returns none must not fill the memory.
MAX_MARKS = 1000
#: How long each piece of a mixer's audio is delayed while nobody receives it.
IDLE_MIXER_S = 0.005

#: The highest sample of what may be left out, when the bot's audio is behind: 54 dB below the loudest.
SILENCE_PEAK = 64

#: Frames that report the caller's or the bot's speech, while it lasts and when it ends.
_SPEECH_FRAMES = (UserSpeakingFrame, VADUserStoppedSpeakingFrame, BotSpeakingFrame, BotStoppedSpeakingFrame)

#: Audio that is sent at once where there is room.
PLAYED_FRAMES = frozenset({OutputAudioRawFrame, TTSAudioRawFrame})

#: The prefix of the transport's own marks.
OWN_MARK = "wsvoice-"


class CallClient(FastAPIWebsocketClient):
    """pipecat's view of the caller; closing is left to the session, which first waits for the last audio."""

    def __init__(self, socket: MediaSocket, callbacks: Any, ws_close_timeout: float) -> None:
        super().__init__(cast(Any, socket), callbacks, ws_close_timeout)
        self._socket = socket
        #: How many ends of the transport are connected.
        self._ends = 0
        self._is_closing = False

    async def setup(self, _: FrameProcessorSetup) -> None:
        """Count one end of the transport."""
        self._ends += 1

    async def disconnect(self) -> None:
        """Ask for the end of the call, once both ends of the transport have disconnected."""
        self._ends -= 1
        if self._ends > 0 or self._is_closing:
            return
        self._is_closing = True
        self._socket.request_close()

    @property
    def is_closing(self) -> bool:
        """Whether the end of the call was requested."""
        return self._is_closing

    @property
    def is_connected(self) -> bool:
        """Whether the caller is there."""
        return not self._socket.gone.is_set()


class CallInputTransport(FastAPIWebsocketInputTransport):
    """The caller's audio and digits, as frames."""

    _transport: CallTransport
    _client: CallClient
    _params: FastAPIWebsocketParams
    #: Detects speech, if the params have a ``vad_analyzer``; set by the patch ``input-vad``.
    _wsvoice_speech_detector: SpeechDetector | None = None

    def __init__(
        self,
        transport: CallTransport,
        client: CallClient,
        params: FastAPIWebsocketParams,
        socket: MediaSocket,
        serializer: CallSerializer,
        **kwargs: Any,
    ) -> None:
        super().__init__(transport, client, params, **kwargs)
        self._transport, self._client, self._params = transport, client, params
        self._socket = socket
        self._serializer = serializer
        self._streaming = True
        self._loop = asyncio.get_running_loop()
        #: When the last activity other than sound was, on the loop's clock.
        self._active_at = 0.0
        #: Whether the pipeline itself reports when the caller speaks.
        self._vad_in_pipeline = False
        #: How many frames were taken, and whether too many of them wait.
        self._taken = 0
        self._is_behind = False
        #: Whether audio is pushed by the task that reads it.
        self._is_direct = False
        #: Whether the pipeline takes audio: it has started, and not ended.
        self._passes_audio = False
        #: Whether nothing but pipecat's own methods is between this and the next processor's queue.
        self._is_plain = False

    async def start(self, frame: StartFrame) -> None:
        """Begin to receive."""
        self._streaming = self._params.audio_in_stream_on_start
        # The output's setup has set the pipeline's rate again; the params may have another.
        self._serializer.use_input_rate(self.sample_rate)
        await super().start(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Handle a frame; those that report speech restart the session timeout."""
        if isinstance(frame, _SPEECH_FRAMES):
            self._active_at = self._loop.time()
        elif isinstance(frame, SpeechControlParamsFrame) and frame.vad_params is not None:
            self._vad_in_pipeline = True
        elif isinstance(frame, InputTransportStartAudioStreamingFrame):
            self._streaming = True
        await super().process_frame(frame, direction)

    async def start_audio_in_streaming(self) -> None:
        """Pass the caller's audio on from now on, if ``audio_in_stream_on_start`` is off."""
        self._streaming = True

    if is_supported("session-timeout"):

        async def _monitor_websocket(self, timeout: float) -> None:
            """Report every silence of `timeout` seconds to the bot, once."""
            self._active_at = self._loop.time()
            reported: float | None = None
            while True:
                active_at = self._last_activity()
                # After a reported silence, the next one begins with new activity.
                wait_s = timeout if active_at == reported else active_at + timeout - self._loop.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                    continue
                reported = active_at
                await self._client.trigger_client_timeout()

    def _last_activity(self) -> float:
        """Return when the caller or the bot was last active, on the loop's clock."""
        turns, detector = self._socket.turns, self._wsvoice_speech_detector
        moments = [self._active_at]
        if detector is not None:
            moments.append(detector.spoke_at or 0.0)
        elif not self._vad_in_pipeline:
            moments.append(turns.caller_sounded_at or 0.0)
        if turns.bot_sounded_at is not None and not self._params.audio_out_mixer:
            # Audio counts until it is played, a little after it was sent. A mixer's background is no activity.
            now = self._loop.time()
            queued_s = self._socket.pacer.queued_s(now)
            moments.append(now if queued_s and now - turns.bot_sounded_at <= queued_s else turns.bot_sounded_at)
        return max(moments)

    if is_supported("call-input"):

        async def _receive_messages(self) -> None:
            await self._socket.deliver_to(self._take, self)
            if not self._client.is_closing:
                await self._client.trigger_client_disconnected()

    if is_supported("direct-input"):

        def _create_audio_task(self) -> None:
            """Have a task for audio only where it has something to do: filter, or listen for speech."""
            following = self.next
            self._is_direct = (
                self._params.audio_in_filter is None
                and self._wsvoice_speech_detector is None
                # What runs in the task that reads must not be able to hold it up.
                and following is not None
                and not following._enable_direct_mode
                and not self._event_handlers["on_before_push_frame"].handlers
                and not self._event_handlers["on_after_push_frame"].handlers
            )
            self._passes_audio = True
            if not self._is_direct:
                super()._create_audio_task()
            # What a class of the bot's does in place of pipecat may wait.
            self._is_plain = (
                following is not None
                and type(self).push_frame is FrameProcessor.push_frame
                and type(following).queue_frame is FrameProcessor.queue_frame
            )

        async def _cancel_audio_task(self) -> None:
            self._passes_audio = False
            await super()._cancel_audio_task()

        async def push_audio_frame(self, frame: InputAudioRawFrame) -> None:
            """Push audio at once where it passes no task."""
            if not self._is_direct:
                await super().push_audio_frame(frame)
            elif self._lets_audio_in:
                await self.push_frame(frame)

    @property
    def _lets_audio_in(self) -> bool:
        params = self._params
        return self._passes_audio and params.audio_in_enabled and params.audio_in_passthrough and not self._paused

    def takes_audio(self) -> bool:
        """Whether audio can be passed on where it arrives, without a task."""
        return self._is_direct and self._is_plain and not self._cancelling and not are_pushes_seen(self)

    def take_audio(self, pcm: bytes) -> None:
        """Pass a piece of audio on, s16le at the wire's rate."""
        if not self._streaming or self._is_too_far_behind():
            return
        frame = self._serializer.audio_frame(pcm)
        if frame is not None and self._lets_audio_in and self._next is not None:
            put_in_a_callback(self._next, frame)

    async def _take(self, event: Event, pcm: bytes) -> None:
        if isinstance(event, Mark):
            await self._transport.mark_returned(event.name)
            return
        is_audio = isinstance(event, Audio)
        if isinstance(event, Digit):
            self._active_at = self._loop.time()
        elif is_audio and not self._streaming:
            return
        if self._is_too_far_behind():
            return
        frame = self._serializer.audio_frame(pcm) if is_audio else self._serializer.frame(event)
        if frame is None:
            return
        if isinstance(frame, InputAudioRawFrame):
            await self.push_audio_frame(frame)
        else:
            await self.push_frame(frame)

    def _is_too_far_behind(self) -> bool:
        """Count what is taken; whether more waits in the pipeline than may."""
        self._taken += 1
        if self._taken % COUNT_EVERY == 0:
            self._is_behind = waiting_frames(self) > MAX_WAITING_FRAMES
        if self._is_behind:
            self._socket.note_unread("it is so far behind that what the caller says now is being dropped")
        return self._is_behind


def waiting_frames(transport: BaseInputTransport) -> int:
    """Return how many frames wait in an input and in the processors behind it."""
    if not is_supported("backlog"):
        return 0
    count = transport._audio_in_queue.qsize() if transport._audio_task is not None else 0
    processor = transport.next
    while processor is not None:
        # Incoming frames wait in the first of a processor's queues, which is private to pipecat's base class.
        count += processor._FrameProcessor__input_queue.qsize()  # type: ignore[attr-defined]
        processor = processor.next
    return count


def has_handler(transport: BaseTransport, event_name: str) -> bool:
    """Whether the bot handles an event; true if that cannot be known."""
    return not is_supported("hang-up") or bool(transport._event_handlers[event_name].handlers)


class WideCallInputTransport(CallInputTransport):
    """The same for bots that want more than one channel: the caller's audio is on each."""

    async def push_frame(self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM) -> None:
        """Push a frame, with the caller's audio on every channel."""
        channels = self._params.audio_in_channels
        if isinstance(frame, InputAudioRawFrame) and frame.num_channels == 1:
            wide = np.repeat(np.frombuffer(frame.audio, "<i2"), channels).tobytes()
            frame = InputAudioRawFrame(audio=wide, sample_rate=frame.sample_rate, num_channels=channels)
        await super().push_frame(frame, direction)


class CallOutputTransport(FastAPIWebsocketOutputTransport):
    """
    The bot's audio on its way to the caller.

    It is sent in steps of 20 ms by an absolute clock, ahead of real time by at most the lead. A mark follows each
    utterance, so that its end can be awaited.
    """

    _transport: CallTransport
    _client: CallClient
    _params: FastAPIWebsocketParams

    def __init__(
        self,
        transport: CallTransport,
        client: CallClient,
        params: FastAPIWebsocketParams,
        socket: MediaSocket,
        serializer: CallSerializer,
        **kwargs: Any,
    ) -> None:
        super().__init__(transport, client, params, **kwargs)
        self._transport, self._client, self._params = transport, client, params
        self._socket = socket
        self._serializer = serializer
        #: Bytes of 20 ms, s16le at the wire's rate.
        self._frame_bytes = 2 * round(socket.stream.outbound_format.sample_rate * FRAME_S)
        # A bot that answers piece by piece sends as rarely as the caller's pieces come.
        self._utterance_end_s = max(UTTERANCE_END_S, 1.5 * socket.carrier_frame_ms / 1000)
        #: What is not a whole frame yet, or not sent yet, s16le at the wire's rate.
        self._pending = bytearray()
        self._interruptions = 0
        #: Whether what is being sent goes on after an interruption.
        self._goes_on = False
        #: How many frames are being processed.
        self._under_way = 0
        self._sender: CallMediaSender | None = None
        #: Whether pipecat has yet to empty its queue, because of an interruption.
        self._interrupting = False
        self._last_write = 0.0
        #: Whether a piece of audio is being sent, however long that takes.
        self._writing = False
        #: Whether something was sent since the last utterance's end, and whether that is looked for.
        self._in_utterance = False
        self._watches = False
        self._end_timer: asyncio.TimerHandle | None = None
        self._utterance_task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self, frame: StartFrame) -> None:
        """Begin to send."""
        await super().start(frame)
        self._watches = True
        if self._socket.on_bot_started is not None:
            self._socket.on_bot_started()

    async def set_transport_ready(self, frame: StartFrame) -> None:
        """Begin to send, without delay where rates differ; with a sender of our own where it can do what is asked."""
        params = self._params
        has_more = params.audio_out_destinations or params.video_out_destinations or params.video_out_enabled
        if has_more or params.audio_out_mixer or not is_supported("media-sender"):
            await super().set_transport_ready(frame)
            use_resampler(self, LowLatencyResampler)
            return
        self._sender = self._media_senders[None] = CallMediaSender(
            self,
            destination=None,
            sample_rate=self.sample_rate,
            audio_chunk_size=self.audio_chunk_size,
            params=params,
        )
        use_resampler(self, LowLatencyResampler)
        await self._sender.start(frame)
        await self.push_frame(OutputTransportReadyFrame(), FrameDirection.UPSTREAM)

    async def stop(self, frame: EndFrame) -> None:
        """Send the remaining audio, then let the session end the call."""
        await BaseOutputTransport.stop(self, frame)
        await self._stop_watching()
        await self._end_utterance()
        await self._client.disconnect()

    async def cancel(self, frame: CancelFrame) -> None:
        """Stop at once, and let the session end the call."""
        await BaseOutputTransport.cancel(self, frame)
        await self._stop_watching()
        await self._client.disconnect()

    async def cleanup(self) -> None:
        """Release everything."""
        await self._stop_watching()
        await super().cleanup()

    async def queue_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM, callback: Any = None
    ) -> None:
        """Queue a frame; audio for which there is room on the line, and before which nothing waits, is sent now."""
        sender = self._sender
        if (
            sender is not None
            and isinstance(frame, OutputAudioRawFrame)
            and type(frame) in PLAYED_FRAMES
            and callback is None
            and direction is FrameDirection.DOWNSTREAM
            and self._is_free()
            and sender.can_play(frame)
            and self._has_room(frame)
        ):
            if type(frame) is OutputAudioRawFrame:
                sender.play_now(frame)
            else:
                await sender.play(frame)
            return
        await super().queue_frame(frame, direction, callback)

    def _is_free(self) -> bool:
        """Whether no frame waits or is being processed, and nobody looks at those that are."""
        handlers = self._event_handlers
        return not (
            self._under_way
            or self._cancelling
            or self._interrupting
            or self._writing
            or self._FrameProcessor__input_queue.qsize()  # type: ignore[attr-defined]
            or self._FrameProcessor__process_queue.qsize()  # type: ignore[attr-defined]
            or self._FrameProcessor__process_current_frame is not None  # type: ignore[attr-defined]
            or self._FrameProcessor__should_block_frames  # type: ignore[attr-defined]
            or self._FrameProcessor__should_block_system_frames  # type: ignore[attr-defined]
            or handlers["on_before_process_frame"].handlers
            or handlers["on_after_process_frame"].handlers
            or is_processing_seen(self)
        )

    def _has_room(self, frame: OutputAudioRawFrame) -> bool:
        waiting_s = len(self._pending) / self._frame_bytes * FRAME_S
        duration_s = len(frame.audio) / 2 / frame.sample_rate
        return frame.transport_destination is None and self._socket.has_room(waiting_s + duration_s)

    def is_audio_seen(self) -> bool:
        """Whether an observer, an event handler or a processor behind this one looks at the audio that was sent."""
        return are_pushes_seen(self) or is_audio_wanted_behind(self)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Handle a frame; an interruption reaches the provider before anything else happens."""
        self._under_way += 1
        try:
            await self._process(frame, direction)
        finally:
            self._under_way -= 1

    async def _process(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, InterruptionFrame):
            self._interruptions += 1
            if not self._goes_on:
                self._pending.clear()
                self._serializer.forget()
            self._in_utterance = False
            self._transport.marks_cleared()
            self._interrupting = True
            try:
                await self._socket.send_event(Clear())
                await BaseOutputTransport.process_frame(self, frame, direction)
            finally:
                self._interrupting = False
            return
        if isinstance(frame, OutputAudioRawFrame) and frame.num_channels != 1:
            frame = _mono(frame)
        await BaseOutputTransport.process_frame(self, frame, direction)

    @property
    def _is_off(self) -> bool:
        """Whether nothing is sent: the bot sends no audio, or nobody is there any more."""
        return not self._params.audio_out_enabled or self._client.is_closing or not self._client.is_connected

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        """Send one piece of audio when its time has come; false if it was interrupted or nobody is there."""
        if self._is_off:
            if self._params.audio_out_mixer:
                # A mixer produces audio without end, and nothing else would slow it down now.
                await asyncio.sleep(IDLE_MIXER_S)
            return False
        return await self.play(frame.audio, self.sample_rate, frame)

    async def play(self, pcm: bytes, sample_rate: int, frame: OutputAudioRawFrame) -> bool:
        """
        Send audio of `frame` when its time has come; false if it was interrupted or nobody is there.

        Args:
            pcm: s16le of `sample_rate` Hz.
        """
        if self._is_off:
            return False
        if self._interrupting and frame.interruptible:
            return False
        self._pending += self._serializer.at_wire_rate(pcm, sample_rate)
        self._writing, self._goes_on = True, not frame.interruptible
        try:
            return await self._send_pending()
        finally:
            self._writing = self._goes_on = False

    def play_now(self, pcm: bytes, sample_rate: int) -> None:
        """Send audio for which there is room, s16le of `sample_rate` Hz."""
        if not self._params.audio_out_enabled or self._client.is_closing:
            return
        pending, size, socket = self._pending, self._frame_bytes, self._socket
        pending += self._serializer.at_wire_rate(pcm, sample_rate)
        while len(pending) >= size:
            piece = bytes(pending[:size])
            del pending[:size]
            # What came late is made up for where nobody speaks.
            if not socket.pacer.is_behind(self._loop.time()) or peak(piece) > SILENCE_PEAK:
                socket.send_audio_now(piece)
        self._note_write()

    async def write_dtmf(self, frame: OutputDTMFFrame | OutputDTMFUrgentFrame) -> None:
        """Press keys: by the provider's own message if it has one, otherwise as tones."""
        if self._is_off:
            return
        try:
            await self._socket.send_event(SendDigits("".join(button.value for button in frame.buttons or ())))
        except LocalProtocolError:
            await super().write_dtmf(frame)

    async def send_message(self, frame: OutputTransportMessageFrame | OutputTransportMessageUrgentFrame) -> None:
        """Send a message that the bot made."""
        if not self._serializer.should_ignore_frame(frame):
            await self._socket.send_message(frame.message)

    async def _send_pending(self) -> bool:
        """Send all whole frames; false if an interruption came before the last, unless the audio goes on after it."""
        socket, size = self._socket, self._frame_bytes
        interruptions = self._interruptions
        while len(self._pending) >= size:
            wait_s = socket.pacer.wait_s(self._loop.time(), FRAME_S)
            if wait_s > 0:
                # Where more waits, the next two leave together: half as many wake-ups.
                await asyncio.sleep(wait_s + (FRAME_S if len(self._pending) >= 2 * size else 0))
                if interruptions != self._interruptions and not self._goes_on:
                    return False
                # The end of an utterance and the beginning of the next one are sent by two tasks.
                continue
            pcm = bytes(self._pending[:size])
            del self._pending[:size]
            await socket.send_audio(pcm)
            if interruptions != self._interruptions and not self._goes_on:
                return False
        self._note_write()
        return True

    def _note_write(self) -> None:
        """Look for the utterance's end from now on."""
        self._last_write = self._loop.time()
        self._in_utterance = True
        if self._end_timer is None and self._watches:
            self._end_timer = self._loop.call_later(self._utterance_end_s, self._look_for_end)

    def _look_for_end(self) -> None:
        self._end_timer = None
        if not self._in_utterance:
            return
        now, end_s = self._loop.time(), self._utterance_end_s
        is_ending = self._utterance_task is not None and not self._utterance_task.done()
        ends_at = now + end_s if self._writing or is_ending else self._last_write + end_s
        if ends_at > now:
            self._end_timer = self._loop.call_at(ends_at, self._look_for_end)
        else:
            self._utterance_task = self.create_task(self._end_utterance())

    async def _end_utterance(self) -> None:
        """Send what the resampler holds, filled up with silence, and then a mark."""
        self._in_utterance = False
        self._pending += self._serializer.flush()
        missing = -len(self._pending) % self._frame_bytes
        self._pending += bytes(missing)
        if self._pending:
            await self._send_pending()
            self._in_utterance = False
        if self._socket.sent_ms:
            await self._transport.mark_utterance()

    async def _stop_watching(self) -> None:
        self._watches = False
        if self._end_timer is not None:
            self._end_timer.cancel()
            self._end_timer = None
        if self._utterance_task is not None:
            task, self._utterance_task = self._utterance_task, None
            await self.cancel_task(task)


class CallTransport(FastAPIWebsocketTransport):
    """
    The ready-made transport of a call.

    It is a ``FastAPIWebsocketTransport`` with all its params and events, and adds:

    - ``on_mark(transport, name, played)``: a mark of :meth:`send_mark` was returned; `played` is false if an
      interruption cleared the audio before it.
    - ``on_call_status(transport, update)``: the provider reports something of the call, such as who answered; `update`
      is a :class:`~wsvoice.CallUpdate`.
    - ``on_call_ending(transport, seconds_left)``: the call has nearly lasted for as long as it may
      (``--max-call-time``), and is ended in so many seconds.
    - :attr:`heard_ms`: how much of the bot's audio the caller has heard.
    """

    def __init__(
        self,
        socket: MediaSocket,
        params: FastAPIWebsocketParams,
        call: Call,
        input_name: str | None = None,
        output_name: str | None = None,
    ) -> None:
        params = _telephone_params(params)
        super().__init__(cast(Any, socket), params, input_name, output_name)
        self.call = call
        self._socket = socket
        serializer = CallSerializer(socket.stream)
        params.serializer = serializer
        callbacks = FastAPIWebsocketCallbacks(
            on_client_connected=partial(self._call_event_handler, "on_client_connected"),
            on_client_disconnected=self._caller_left,
            on_session_timeout=partial(self._call_event_handler, "on_session_timeout"),
        )
        client = CallClient(socket, callbacks, params.ws_close_timeout)
        input_kind = CallInputTransport if params.audio_in_channels == 1 else WideCallInputTransport
        self._input: CallInputTransport = input_kind(self, client, params, socket, serializer, name=input_name)
        self._output: CallOutputTransport = CallOutputTransport(
            self, client, params, socket, serializer, name=output_name
        )
        self._register_event_handler("on_mark")
        self._register_event_handler("on_call_status")
        socket.update_listener = partial(self._call_event_handler, "on_call_status")
        self._register_event_handler("on_call_ending")
        socket.ending_listener = partial(self._call_event_handler, "on_call_ending")
        #: Pending marks, with the milliseconds of audio before them; ``None`` once that was cleared.
        self._marks: dict[str, float | None] = {}
        self._mark_count = 0
        self._confirmed_ms = 0.0

    def input(self) -> CallInputTransport:
        """Return the caller's audio and digits."""
        return self._input

    def output(self) -> CallOutputTransport:
        """Return the bot's audio on its way to the caller."""
        return self._output

    async def _caller_left(self, websocket: Any) -> None:
        await self._call_event_handler("on_client_disconnected", websocket)
        if not has_handler(self, "on_client_disconnected"):
            # Nothing else would end the pipeline.
            await self._input.push_frame(CancelWorkerFrame(reason="the caller hung up"))

    @property
    def heard_ms(self) -> float:
        """How much of the bot's audio the caller has heard, by the playback clock and the marks."""
        return max(self._confirmed_ms, self._socket.heard_ms)

    async def send_mark(self, name: str) -> None:
        """Request ``on_mark`` once all audio sent so far has been played or cleared."""
        self._marks[name] = self._socket.playable_ms
        if len(self._marks) > MAX_MARKS:
            del self._marks[next(iter(self._marks))]
        await self._socket.send_event(Mark(name))

    async def mark_utterance(self) -> None:
        """Mark the end of an utterance."""
        self._mark_count += 1
        await self.send_mark(f"{OWN_MARK}{self._mark_count}")

    def marks_cleared(self) -> None:
        """Note that the audio before the pending marks was cleared."""
        self._marks = dict.fromkeys(self._marks)

    async def mark_returned(self, name: str) -> None:
        """Handle a returned mark; the providers return a cleared one like a played one."""
        if name not in self._marks:
            return  # It was never sent, or is returned already.
        position_ms = self._marks.pop(name)
        if position_ms is not None:
            self._confirmed_ms = max(self._confirmed_ms, position_ms)
        if not name.startswith(OWN_MARK):
            await self._call_event_handler("on_mark", name, position_ms is not None)


def _telephone_params(params: FastAPIWebsocketParams) -> FastAPIWebsocketParams:
    """Return a copy with defaults for a call: 20 ms chunks, no silence at the end."""
    chosen = params.model_fields_set
    # A telephone has one channel; frames with more are mixed down one by one.
    update: dict[str, Any] = {"add_wav_header": False, "audio_out_channels": 1}
    if "audio_out_10ms_chunks" not in chosen:
        update["audio_out_10ms_chunks"] = FRAME_MS // 10
    if "audio_out_end_silence_secs" not in chosen:
        # pipecat sends two seconds of silence so that the last words are not cut off; the session waits for a mark.
        update["audio_out_end_silence_secs"] = 0
    return params.model_copy(update=update)


def _mono(frame: OutputAudioRawFrame) -> OutputAudioRawFrame:
    """Return a frame with its channels mixed down to one."""
    samples = np.frombuffer(frame.audio, "<i2")
    whole = len(samples) // frame.num_channels * frame.num_channels
    mixed = np.rint(samples[:whole].reshape(-1, frame.num_channels).mean(axis=1)).astype("<i2").tobytes()
    mono = type(frame)(audio=mixed, sample_rate=frame.sample_rate, num_channels=1)
    mono.transport_destination = frame.transport_destination
    mono.interruptible = frame.interruptible
    return mono
