"""
What plays the bot's audio in order with everything that waits for it: pipecat's media sender with fewer wake-ups.

pipecat's own cuts audio into frames of 20 ms, queues each, and has a task write each with two timers. Here a frame of
any length is one entry of the queue, and audio for which the line has room right now waits for no task at all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from loguru import logger
from pipecat.audio.utils import scale_audio
from pipecat.frames.frames import EndFrame, Frame, InterruptionFrame, OutputAudioRawFrame, SpeechOutputAudioRawFrame
from pipecat.transports.base_output import BOT_VAD_STOP_FALLBACK_SECS, BaseOutputTransport

if TYPE_CHECKING:
    from wsvoice.runner.pipecat.call_transport import CallOutputTransport

#: How much of a long frame is resampled at once, in seconds: other calls wait meanwhile.
SLICE_S = 0.2


class CallMediaSender(BaseOutputTransport.MediaSender):
    """
    The sender of a call without a mixer, other destinations or video.

    Audio that somebody behind the transport looks at, or that has to be filtered, goes pipecat's way: cut into frames
    of 20 ms, which are pushed on when they are sent.
    """

    _transport: CallOutputTransport
    _audio_queue: Any

    def __init__(self, transport: CallOutputTransport, **options: Any) -> None:
        super().__init__(transport, **options)
        self._loop = asyncio.get_running_loop()
        #: Whether the task waits for something to play.
        self._is_at_rest = False
        #: The frame that is being played whole.
        self._playing: OutputAudioRawFrame | None = None
        self._is_interrupting = False
        #: When audio was last played, on the loop's clock, and what looks whether it has stopped.
        self._played_at = 0.0
        self._stop_timer: asyncio.TimerHandle | None = None

    def can_play(self, frame: OutputAudioRawFrame) -> bool:
        """Whether nothing has to be played before a frame, and nobody looks at it once it is played."""
        return self._is_at_rest and self._audio_queue.empty() and self._goes_whole(frame)

    def play_now(self, frame: OutputAudioRawFrame) -> None:
        """Play a frame that is no speech, for which there is room; only if :meth:`can_play`."""
        self._transport.play_now(self._at_volume(frame.audio), frame.sample_rate)
        self._played_at = self._loop.time()
        if self._bot_speaking:
            self._watch_for_stop()

    async def play(self, frame: OutputAudioRawFrame) -> None:
        """Play a frame of any length, or as much of it as is not interrupted."""
        if not frame.audio:
            return
        pcm, rate = self._at_volume(frame.audio), frame.sample_rate
        self._playing = frame
        try:
            await self._handle_bot_speech(frame)
            size = 2 * round(rate * SLICE_S)
            if len(pcm) <= size:
                await self._transport.play(pcm, rate, frame)
            else:
                for at in range(0, len(pcm), size):
                    if not await self._transport.play(pcm[at : at + size], rate, frame):
                        break
                    await self._handle_bot_speech(frame)
        except Exception as error:  # noqa: BLE001
            logger.error(f"{self._transport} Error writing {frame} to transport: {error}")
        finally:
            self._playing = None
            self._played_at = self._loop.time()
            self._watch_for_stop()

    def _at_volume(self, pcm: bytes) -> bytes:
        volume = self._volume * self._volume_gain
        return pcm if volume == 1.0 else scale_audio(pcm, volume)

    async def handle_audio_frame(self, frame: OutputAudioRawFrame) -> None:
        """Queue a frame: whole, or in pieces where somebody looks at them."""
        if not self._params.audio_out_enabled:
            return
        if self._goes_whole(frame):
            frame._wsvoice_whole = True  # type: ignore[attr-defined]
            await self._audio_queue.put(frame)
        else:
            await super().handle_audio_frame(frame)

    async def handle_interruptions(self, frame: InterruptionFrame) -> None:
        """Drop what may be dropped."""
        self._is_interrupting = True
        try:
            await super().handle_interruptions(frame)
        finally:
            self._is_interrupting = False

    async def cleanup(self) -> None:
        """Release everything."""
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        await super().cleanup()

    def _goes_whole(self, frame: OutputAudioRawFrame) -> bool:
        return not (
            self._filter
            or self._audio_runs
            or frame.num_channels != 1
            # A bot that sends audio all the time is silent where the audio is, piece by piece.
            or isinstance(frame, SpeechOutputAudioRawFrame)
            or self._transport.is_audio_seen()
        )

    async def _audio_task_handler(self) -> None:
        queue = self._audio_queue
        while True:
            self._is_at_rest = queue.empty()
            frame: Frame = await queue.get()
            self._is_at_rest = False
            if isinstance(frame, EndFrame):
                await self._send_silence(self._params.audio_out_end_silence_secs)
                return
            if not isinstance(frame, OutputAudioRawFrame):
                await self._handle_frame(frame)
                await self._transport.push_frame(frame)
            elif getattr(frame, "_wsvoice_whole", False):
                await self.play(frame)
            else:
                await self._play_piece(frame)
            queue.task_done()

    async def _play_piece(self, frame: OutputAudioRawFrame) -> None:
        await self._filter_audio(frame)
        self._apply_volume(frame)
        if not frame.audio:
            return
        await self._handle_frame(frame)
        try:
            was_sent = await self._internal_write_audio_frame(frame)
        except Exception as error:  # noqa: BLE001
            logger.error(f"{self._transport} Error writing {frame} to transport: {error}")
            was_sent = False
        self._played_at = self._loop.time()
        self._watch_for_stop()
        if was_sent:
            await self._transport.push_frame(frame)

    async def _bot_stopped_speaking(self) -> None:
        if self._is_interrupting and self._playing is not None and not self._playing.interruptible:
            return  # It goes on.
        await super()._bot_stopped_speaking()

    def _watch_for_stop(self) -> None:
        """Look for the end of the bot's speech where no frame tells of it."""
        if self._bot_speaking and self._stop_timer is None:
            self._stop_timer = self._loop.call_at(self._played_at + BOT_VAD_STOP_FALLBACK_SECS, self._look_for_stop)

    def _look_for_stop(self) -> None:
        self._stop_timer = None
        if not self._bot_speaking:
            return
        if not self._is_at_rest or self._playing is not None:
            self._played_at = self._loop.time()
        if self._loop.time() < self._played_at + BOT_VAD_STOP_FALLBACK_SECS:
            self._watch_for_stop()
        else:
            self._transport.create_task(self._bot_stopped_speaking())
