"""Notes failures inside a pipeline for its call: errors that processors report, event handlers that raise."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from loguru import logger
from pipecat.frames.frames import ErrorFrame
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.utils.base_object import BaseObject

from wsvoice.call import Cause
from wsvoice.isolation import describe_failure
from wsvoice.runner.diagnosis import Diagnosis, current, one_line

_MARK = "_wsvoice_notes_causes"
#: The beginning of pipecat's message for an exception in ``process_frame``.
_RAISED = "Error processing frame: "


def apply() -> None:
    """Note errors; what pipecat does with them is unchanged."""
    if getattr(FrameProcessor, _MARK, False):
        return
    setattr(FrameProcessor, _MARK, True)
    push, run = FrameProcessor.push_error_frame, BaseObject._run_handler

    @functools.wraps(push)
    async def push_error_frame(self: FrameProcessor, error: ErrorFrame, *args: Any, **options: Any) -> None:
        if (diagnosis := current.get()) is not None:
            _note(diagnosis, self, error)
        await push(self, error, *args, **options)

    @functools.wraps(run)
    async def run_handler(self: BaseObject, event_name: str, handler: Any, *args: Any, **options: Any) -> None:
        diagnosis = current.get()
        if diagnosis is None:
            await run(self, event_name, handler, *args, **options)
            return

        async def noting(*args: Any, **options: Any) -> None:
            try:
                result = handler(*args, **options)
                if inspect.iscoroutinefunction(handler):
                    await result
            except Exception as error:
                diagnosis.note_exception(error, where=event_name)
                raise

        await run(self, event_name, noting, *args, **options)

    FrameProcessor.push_error_frame = push_error_frame  # type: ignore[method-assign]
    BaseObject._run_handler = run_handler  # type: ignore[method-assign]


def _note(diagnosis: Diagnosis, processor: FrameProcessor, error: ErrorFrame) -> None:
    # pipecat numbers the processors of a class: "CartesiaTTSService#0".
    name = re.sub(r"#\d+$", "", str(error.processor or processor))
    if error.exception is not None and error.error.startswith(_RAISED):
        if diagnosis.note_exception(error.exception, where=name):
            # pipecat's own line has neither the class nor the traceback, and is repeated for every frame.
            logger.opt(exception=error.exception).error("{} {}", name, describe_failure(error.exception))
        return
    text = one_line(error.error)
    diagnosis.note(Cause("service", text if name in text else f"{name}: {text}"))
