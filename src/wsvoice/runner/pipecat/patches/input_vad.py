"""
``vad_analyzer`` and ``turn_analyzer`` in the params of any transport, as in older pipecat.

The transport's input detects when the caller's speech begins and ends. If nothing else in the pipeline decides about
turns, it does so too, as older transports did: ``UserStartedSpeakingFrame``, then an interruption of the bot;
``UserStoppedSpeakingFrame``. An aggregator or a ``UserTurnProcessor`` decides by itself, from the
``VADUserStartedSpeakingFrame`` and ``VADUserStoppedSpeakingFrame`` that are always sent.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from loguru import logger
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    MetricsFrame,
    SpeechControlParamsFrame,
    StartFrame,
    UserSpeakingFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADParamsUpdateFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor, FrameProcessorSetup
from pipecat.transports.base_input import BaseInputTransport

from wsvoice.runner.pipecat.patches.old_params import ALLOW_INTERRUPTIONS

if TYPE_CHECKING:
    from pipecat.audio.turn.base_turn_analyzer import BaseTurnAnalyzer
    from pipecat.audio.vad.vad_analyzer import VADAnalyzer

_ATTRIBUTE = "_wsvoice_speech_detector"


class SpeechDetector:
    """
    Detects speech in the audio of a transport's input.

    Attributes:
        spoke_at: When speech was last detected, on the loop's clock.
    """

    def __init__(self, transport: BaseInputTransport, vad: VADAnalyzer, turn: BaseTurnAnalyzer | None) -> None:
        from pipecat.audio.vad.vad_controller import VADController

        self.spoke_at: float | None = None
        self._transport = transport
        self._vad = vad
        self._turn = turn
        self._speaking = False
        self._in_turn = False
        self._interrupts = True
        #: Whether it decides about turns, and whether it detects speech at all; set once the pipeline is complete.
        self._decides = True
        self._listens = True
        self._loop = asyncio.get_running_loop()
        self._controller = VADController(vad)
        self._controller.add_event_handler("on_speech_started", self._speech_started)
        self._controller.add_event_handler("on_speech_stopped", self._speech_stopped)
        self._controller.add_event_handler("on_speech_activity", self._speech_goes_on)
        self._controller.add_event_handler("on_push_frame", self._push)
        self._controller.add_event_handler("on_broadcast_frame", self._broadcast)

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Set the input's rate."""
        await self._controller.setup(setup)
        self._vad.set_sample_rate(self._transport.sample_rate)
        if self._turn is not None:
            self._turn.set_sample_rate(self._transport.sample_rate)
            self._turn.update_vad_start_secs(self._vad.params.start_secs)

    async def cleanup(self) -> None:
        """Release the analyzers."""
        await self._controller.cleanup()
        if self._turn is not None:
            await self._turn.cleanup()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Follow the pipeline's life cycle; called after the transport has handled the frame."""
        if isinstance(frame, StartFrame):
            self._interrupts = frame.metadata.get(ALLOW_INTERRUPTIONS, True)
            self._inspect_pipeline()
            if self._listens:
                await self._controller.start()
                if self._turn is not None and self._decides:
                    await self._transport.broadcast_frame(SpeechControlParamsFrame, turn_params=self._turn.params)
        elif isinstance(frame, (EndFrame, CancelFrame)):
            await self._controller.stop()
        elif isinstance(frame, VADParamsUpdateFrame):
            await self._controller.process_frame(frame)
        elif isinstance(frame, UserStartedSpeakingFrame) and direction is FrameDirection.UPSTREAM:
            # A processor decides that the inspection did not find.
            self._decides = False

    async def listen(self) -> None:
        """Do what the input does with its audio, and detect speech in it."""
        transport, queue = self._transport, self._transport._audio_in_queue
        params = transport._params
        while True:
            frame: InputAudioRawFrame = await queue.get()
            if params.audio_in_filter:
                frame.audio = await params.audio_in_filter.filter(frame.audio)
            if frame.audio:
                if params.audio_in_passthrough:
                    await transport.push_frame(frame)
                if self._listens:
                    await self._controller.process_frame(frame)
                    if self._turn is not None and self._decides:
                        await self._append(frame)
            queue.task_done()

    def _inspect_pipeline(self) -> None:
        """Look for other processors that detect speech or decide about turns."""
        for processor in _downstream(self._transport):
            if getattr(processor, "_vad_controller", None) is not None:
                logger.warning(
                    "vad_analyzer is both in the transport's params and in {}: the transport's is not used",
                    type(processor).__name__,
                )
                self._listens = False
            if getattr(processor, "_user_turn_controller", None) is not None:
                self._decides = False
                if self._turn is not None:
                    logger.warning(
                        "{} decides about turns: the turn_analyzer in the transport's params is not used; "
                        "give it to a TurnAnalyzerUserTurnStopStrategy",
                        type(processor).__name__,
                    )

    async def _speech_started(self, _: Any) -> None:
        self._speaking = True
        self.spoke_at = self._loop.time()
        await self._transport.broadcast_frame(VADUserStartedSpeakingFrame, start_secs=self._vad.params.start_secs)
        if self._decides and not self._in_turn:
            self._in_turn = True
            await self._transport.broadcast_frame(UserStartedSpeakingFrame)
            if self._interrupts:
                await self._transport.broadcast_interruption()

    async def _speech_stopped(self, _: Any) -> None:
        self._speaking = False
        self.spoke_at = self._loop.time()
        await self._transport.broadcast_frame(VADUserStoppedSpeakingFrame, stop_secs=self._vad.params.stop_secs)
        if not self._decides:
            return
        if self._turn is None:
            await self._end_turn()
            return
        state, metrics = await self._turn.analyze_end_of_turn()
        if metrics is not None:
            await self._transport.push_frame(MetricsFrame(data=[metrics]))
        if _is_complete(state):
            await self._end_turn()

    async def _speech_goes_on(self, _: Any) -> None:
        self.spoke_at = self._loop.time()
        await self._transport.broadcast_frame(UserSpeakingFrame)

    async def _append(self, frame: InputAudioRawFrame) -> None:
        """Pass audio to the turn analyzer, which ends a turn by itself after a long silence."""
        assert self._turn is not None
        if _is_complete(self._turn.append_audio(frame.audio, self._speaking)):
            await self._end_turn()

    async def _end_turn(self) -> None:
        if self._in_turn:
            self._in_turn = False
            await self._transport.broadcast_frame(UserStoppedSpeakingFrame)

    async def _push(self, _: Any, frame: Frame, direction: FrameDirection) -> None:
        await self._transport.push_frame(frame, direction)

    async def _broadcast(self, _: Any, kind: type[Frame], **arguments: Any) -> None:
        await self._transport.broadcast_frame(kind, **arguments)


def _detector_of(transport: BaseInputTransport) -> SpeechDetector | None:
    """Return the speech detector of a transport's input, if it has one."""
    detector: SpeechDetector | None = transport.__dict__.get(_ATTRIBUTE)
    return detector


def apply() -> None:
    """Make every transport's input detect speech if its params have a ``vad_analyzer``."""
    if getattr(BaseInputTransport.setup, "_wsvoice", False):
        return
    original_setup = BaseInputTransport.setup
    original_cleanup = BaseInputTransport.cleanup
    original_process_frame = BaseInputTransport.process_frame
    original_audio_task = BaseInputTransport._audio_task_handler

    @functools.wraps(original_setup)
    async def setup(self: BaseInputTransport, setup: FrameProcessorSetup) -> None:
        await original_setup(self, setup)
        vad = getattr(self._params, "vad_analyzer", None)
        turn = getattr(self._params, "turn_analyzer", None)
        # A transport whose params have these fields of their own handles them itself.
        if vad is None or "vad_analyzer" in type(self._params).model_fields:
            if turn is not None and vad is None:
                logger.warning("turn_analyzer does nothing without a vad_analyzer")
            return
        detector = SpeechDetector(self, vad, turn)
        setattr(self, _ATTRIBUTE, detector)
        await detector.setup(setup)

    @functools.wraps(original_cleanup)
    async def cleanup(self: BaseInputTransport) -> None:
        await original_cleanup(self)
        detector = _detector_of(self)
        if detector is not None:
            await detector.cleanup()

    @functools.wraps(original_process_frame)
    async def process_frame(self: BaseInputTransport, frame: Frame, direction: FrameDirection) -> None:
        await original_process_frame(self, frame, direction)
        detector = _detector_of(self)
        if detector is not None:
            await detector.process_frame(frame, direction)

    @functools.wraps(original_audio_task)
    def audio_task(self: BaseInputTransport) -> Coroutine[Any, Any, None]:
        detector = _detector_of(self)
        return detector.listen() if detector is not None else original_audio_task(self)

    setup._wsvoice = True  # type: ignore[attr-defined]
    changed: Any = BaseInputTransport
    changed.setup = setup
    changed.cleanup = cleanup
    changed.process_frame = process_frame
    changed._audio_task_handler = audio_task


def _is_complete(state: Any) -> bool:
    from pipecat.audio.turn.base_turn_analyzer import EndOfTurnState

    return bool(state == EndOfTurnState.COMPLETE)


def _downstream(processor: FrameProcessor) -> Iterator[FrameProcessor]:
    """Yield all processors behind one, including those inside compound ones."""
    following = processor.next
    while following is not None:
        yield following
        yield from _inside(following)
        following = following.next


def _inside(processor: FrameProcessor) -> Iterator[FrameProcessor]:
    for each in processor.processors:
        yield each
        yield from _inside(each)
