"""
Audio goes from processor to processor without what nobody sees.

pipecat describes each frame for its trace log, and queues it for each observer, at every step. Fifty frames a second
and direction make that most of a call's processor time. Here an audio frame skips it where no observer and no event
handler wants audio; every other frame, and audio that somebody wants, goes pipecat's own way.
"""

from __future__ import annotations

import functools
from typing import Any

from pipecat.frames.frames import Frame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.utils.errors import ErrorCategory

from wsvoice.runner.pipecat.listeners import AUDIO_FRAMES, are_pushes_seen, is_processing_seen


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
        except Exception as error:  # noqa: BLE001
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
