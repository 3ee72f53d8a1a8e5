"""Who looks at a pipeline's audio frames: observers, event handlers, and the processors behind a transport's output."""

from __future__ import annotations

from collections.abc import Collection
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


#: Observers of pipecat's that never look at audio frames.
_NEVER = frozenset({TurnTrackingObserver, UserBotLatencyObserver})


class _Known:
    """What is known of a processor, as long as it has the same setup, and the pipeline as many observers."""

    __slots__ = ("count", "handlers", "processing", "proxies", "pushes", "reporters", "setup")

    def __init__(self, processor: FrameProcessor) -> None:
        self.setup = setup = processor._setup
        observer = setup.observer if setup else None
        is_known = observer is None or type(observer) is WorkerObserver
        # They come and go one by one, and each time their number changes.
        self.proxies: Collection[BaseObserver] = (observer._proxies or ()) if is_known and observer is not None else ()  # type: ignore[attr-defined]
        self.count = len(self.proxies)
        kinds = [type(each) for each in self.proxies]
        self.processing = not is_known or any(
            kind.on_process_frame is not BaseObserver.on_process_frame for kind in kinds
        )
        #: Whether one always looks at audio, and those that tell RTVI clients how loud both ends are, if they have to.
        self.pushes = not is_known
        self.reporters: list[Any] = []
        events = processor._event_handlers
        self.handlers = events["on_before_push_frame"].handlers, events["on_after_push_frame"].handlers
        for observer, kind in zip(self.proxies, kinds, strict=True):
            if kind.__name__ == "RTVIObserver" and kind.__module__ == "pipecat.processors.frameworks.rtvi.observer":
                # Not imported for a bot that has none.
                self.reporters.append(observer)
            elif kind is IdleFrameObserver:
                self.pushes = self.pushes or _waits_for_audio(observer)
            elif kind not in _NEVER and kind.on_push_frame is not BaseObserver.on_push_frame:
                self.pushes = True


def _look_at(processor: FrameProcessor) -> _Known:
    known = processor.__dict__["_wsvoice_known"] = _Known(processor)
    return known


# Both are asked several times for each piece of audio: a function or a generator more is seen in a call's costs.


def are_pushes_seen(processor: FrameProcessor) -> bool:
    """Whether an observer or an event handler looks at audio that a processor pushes."""
    known: _Known | None = processor.__dict__.get("_wsvoice_known")
    if known is None or known.setup is not processor._setup or len(known.proxies) != known.count:
        known = _look_at(processor)
    if known.pushes or known.handlers[0] or known.handlers[1]:
        return True
    for reporter in known.reporters:
        params = reporter._params
        if params.user_audio_level_enabled or params.bot_audio_level_enabled:
            return True
    return False


def is_processing_seen(processor: FrameProcessor) -> bool:
    """Whether an observer looks at audio that a processor processes."""
    known: _Known | None = processor.__dict__.get("_wsvoice_known")
    if known is None or known.setup is not processor._setup or len(known.proxies) != known.count:
        known = _look_at(processor)
    return known.processing


def is_audio_wanted_behind(processor: FrameProcessor) -> bool:
    """Whether anything behind a processor looks at audio: another processor, or the bot at the pipeline's end."""
    end: PipelineWorker | bool | None = processor.__dict__.get("_wsvoice_end")
    if end is None:
        end = _end_behind(processor)
        if processor.next is not None:
            # A pipeline that has been built stays as it is.
            processor.__dict__["_wsvoice_end"] = end
    return end if isinstance(end, bool) else bool(end._reached_downstream_types or end._foreign_probes)


def _end_behind(processor: FrameProcessor) -> PipelineWorker | bool:
    """Return whether audio is wanted behind a processor, or the worker that knows."""
    following = processor.next
    while following is not None:
        if type(following) is not PipelineSink:
            return True
        owner = getattr(following._downstream_push_frame, "__self__", None)
        if type(owner) is Pipeline:
            following = owner.next
        elif isinstance(owner, PipelineWorker):
            return owner
        else:
            return True
    return False
