"""Who looks at a pipeline's audio frames: observers, event handlers, and the processors behind a transport's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipecat.frames.frames import (
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
from pipecat.pipeline.pipeline import Pipeline, PipelineSink
from pipecat.pipeline.worker import IdleFrameObserver, PipelineWorker
from pipecat.pipeline.worker_observer import WorkerObserver
from pipecat.processors.frame_processor import FrameProcessor

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


def is_audio_wanted_behind(processor: FrameProcessor) -> bool:
    """Whether anything behind a processor looks at audio: another processor, or the bot at the pipeline's end."""
    following = processor.next
    while following is not None:
        if type(following) is not PipelineSink:
            return True
        owner = getattr(following._downstream_push_frame, "__self__", None)
        if type(owner) is Pipeline:
            following = owner.next
        elif isinstance(owner, PipelineWorker):
            return bool(owner._reached_downstream_types or owner._foreign_probes)
        else:
            return True
    return False
