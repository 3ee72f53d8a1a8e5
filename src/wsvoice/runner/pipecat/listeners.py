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


#: Observers of pipecat's that never look at audio frames.
_NEVER = frozenset({TurnTrackingObserver, UserBotLatencyObserver})


class _Watch:
    """What the observers of a pipeline want, as long as they are the same."""

    __slots__ = ("asked", "observers", "processing", "pushes")

    def __init__(self, observers: tuple[BaseObserver, ...]) -> None:
        self.observers = observers
        kinds = [type(each) for each in observers]
        self.processing = any(kind.on_process_frame is not BaseObserver.on_process_frame for kind in kinds)
        #: Whether one always looks at audio, and those that do when their params say so.
        self.pushes = False
        self.asked: list[tuple[Callable[[Any], bool], BaseObserver]] = []
        for observer, kind in zip(observers, kinds, strict=True):
            if kind.__name__ == "RTVIObserver" and kind.__module__ == "pipecat.processors.frameworks.rtvi.observer":
                # Not imported for a bot that has none.
                self.asked.append((_reports_levels, observer))
            elif kind is IdleFrameObserver:
                self.pushes = self.pushes or _waits_for_audio(observer)
            elif kind not in _NEVER and kind.on_push_frame is not BaseObserver.on_push_frame:
                self.pushes = True


#: What is known of a processor: the setup it has, its observer's proxies, and what they want.
_Known = tuple[Any, Any, int, _Watch]


def _watch_of(processor: FrameProcessor) -> _Watch | None:
    """Return what is wanted; ``None`` if that cannot be known."""
    setup = processor._setup
    known: _Known | None = processor.__dict__.get("_wsvoice_known")
    # Observers come and go one by one: each time their number changes.
    if known is not None and known[0] is setup and len(known[1]) == known[2]:
        return known[3]
    observer = setup.observer if setup else None
    if observer is None:
        return _NOBODY
    if type(observer) is not WorkerObserver:
        return None
    proxies = observer._proxies or {}
    watch = _Watch(tuple(proxies))
    processor.__dict__["_wsvoice_known"] = setup, proxies, len(proxies), watch
    return watch


_NOBODY = _Watch(())


def are_pushes_seen(processor: FrameProcessor) -> bool:
    """Whether an observer or an event handler looks at audio that a processor pushes."""
    handlers = processor._event_handlers
    if handlers["on_before_push_frame"].handlers or handlers["on_after_push_frame"].handlers:
        return True
    watch = _watch_of(processor)
    if watch is None or watch.pushes:
        return True
    # A generator would take longer than all the rest.
    for wants, observer in watch.asked:  # noqa: SIM110
        if wants(observer):
            return True
    return False


def is_processing_seen(processor: FrameProcessor) -> bool:
    """Whether an observer looks at audio that a processor processes."""
    watch = _watch_of(processor)
    return watch is None or watch.processing


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
