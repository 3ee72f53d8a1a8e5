"""
Audio goes from processor to processor without what nobody sees.

pipecat describes each frame for its trace log, and queues it for each observer, at every step. Fifty frames a second
and direction make that most of a call's processor time. Here an audio frame skips it where no observer and no event
handler wants audio; every other frame, and audio that somebody wants, goes pipecat's own way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pipecat.frames.frames import (
    AudioRawFrame,
    ErrorCategory,
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    SpeechOutputAudioRawFrame,
    TTSAudioRawFrame,
    UserAudioRawFrame,
)
from pipecat.observers.base_observer import BaseObserver
from pipecat.observers.turn_tracking_observer import TurnTrackingObserver
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.pipeline.worker import IdleFrameObserver
from pipecat.pipeline.worker_observer import WorkerObserver
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

#: The frames that are meant. A bot's own subclasses go pipecat's way.
AUDIO_FRAMES = frozenset(
    {InputAudioRawFrame, UserAudioRawFrame, OutputAudioRawFrame, TTSAudioRawFrame, SpeechOutputAudioRawFrame}
)


def _waits_for_audio(observer: Any) -> bool:
    """Whether a pipeline counts as active while there is audio, because the bot said so."""
    kinds: tuple[type[Frame], ...] = observer._idle_timeout_frames
    return any(issubclass(each, kinds) for each in AUDIO_FRAMES)


def _reports_levels(observer: Any) -> bool:
    """Whether an RTVI client is told how loud both ends are."""
    params = observer._params
    return bool(params.user_audio_level_enabled or params.bot_audio_level_enabled)


#: Which of pipecat's own observers look at audio frames that are pushed.
_WANTS_PUSHES: dict[type, Callable[[Any], bool]] = {
    IdleFrameObserver: _waits_for_audio,
    TurnTrackingObserver: lambda _: False,
    UserBotLatencyObserver: lambda _: False,
}


def _wants_pushes(observer: BaseObserver) -> bool:
    kind = type(observer)
    known = _WANTS_PUSHES.get(kind)
    if known is not None:
        return known(observer)
    if kind.__name__ == "RTVIObserver" and kind.__module__ == "pipecat.processors.frameworks.rtvi.observer":
        # Not imported for a bot that has none.
        _WANTS_PUSHES[kind] = _reports_levels
        return _reports_levels(observer)
    return kind.on_push_frame is not BaseObserver.on_push_frame


def are_pushes_seen(processor: FrameProcessor) -> bool:
    """Whether an observer or an event handler looks at audio that a processor pushes."""
    handlers = processor._event_handlers
    if handlers["on_before_push_frame"].handlers or handlers["on_after_push_frame"].handlers:
        return True
    observer = processor._setup.observer if processor._setup else None
    if observer is None:
        return False
    if type(observer) is not WorkerObserver:
        return True
    return any(_wants_pushes(each) for each in observer._proxies or ())


def is_processing_seen(processor: FrameProcessor) -> bool:
    """Whether an observer looks at audio that a processor processes."""
    observer = processor._setup.observer if processor._setup else None
    if observer is None:
        return False
    if type(observer) is not WorkerObserver:
        return True
    return any(type(each).on_process_frame is not BaseObserver.on_process_frame for each in observer._proxies or ())


def apply() -> None:
    """Change how every processor handles audio frames."""
    if getattr(FrameProcessor.push_frame, "_wsvoice", False):
        return
    original_push = FrameProcessor.push_frame
    original_process = FrameProcessor.process_frame

    @functools.wraps(original_push)
    async def push_frame(
        self: FrameProcessor, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        if type(frame) not in AUDIO_FRAMES or are_pushes_seen(self):
            await original_push(self, frame, direction)
            return
        neighbour = self._next if direction is FrameDirection.DOWNSTREAM else self._prev
        if neighbour is None:
            return
        try:
            await neighbour.queue_frame(frame, direction)
        except Exception as error:
            await self.push_error(f"Uncaught exception: {error}", exception=error, category=ErrorCategory.UNKNOWN)

    @functools.wraps(original_process)
    async def process_frame(self: FrameProcessor, frame: Frame, direction: FrameDirection) -> None:
        # Of an audio frame the base class only tells the observers.
        if type(frame) not in AUDIO_FRAMES or is_processing_seen(self):
            await original_process(self, frame, direction)

    push_frame._wsvoice = True  # type: ignore[attr-defined]
    changed: Any = FrameProcessor
    changed.push_frame = push_frame
    changed.process_frame = process_frame


