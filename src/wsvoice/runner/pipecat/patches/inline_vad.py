"""
Silero's voice activity detection runs where its audio is, for all calls that are due together.

pipecat hands every piece of audio to a thread, also the two of five that complete no window. A window takes about
0.1 ms; the way to a thread and back takes as long, and the threads of many calls wait for each other. Here the model
looks at the windows of all calls that come within a few milliseconds at once, which takes half as long for each. What
it says of each is the same to the bit.
"""

from __future__ import annotations

import asyncio
import functools
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import wrapt
from loguru import logger
from numpy.typing import NDArray

#: How long a window waits for those of other calls, in seconds.
WAIT_S = 0.004
#: Only windows wait that come sooner than this after the one before, in seconds: those of four calls or more.
DENSE_S = 0.008
#: How many windows the model looks at together: about half a millisecond, in which all calls wait.
MOST = 16

Floats = NDArray[np.float32]


class Batches:
    """
    Windows of many calls that one model looks at together.

    Args:
        session: The ONNX session of the model, which has no state.
        sample_rate: 8000 or 16000 Hz.
    """

    def __init__(self, session: Any, sample_rate: int) -> None:
        self._session = session
        self._sample_rate = np.array(sample_rate, dtype="int64")
        #: How many samples of the window before belong to a window, as the model was trained.
        self._context = 64 if sample_rate == 16000 else 32
        self._waiting: list[tuple[Any, Floats, asyncio.Future[Floats]]] = []
        self._asked_at = 0.0

    async def confidence(self, model: Any, window: Floats) -> Floats:
        """Return how sure the model is that there is speech in `window`, and take its state along in `model`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        is_dense, self._asked_at = now - self._asked_at < DENSE_S, now
        if not is_dense and not self._waiting:
            (confidence,) = self._run([model], [window])
            return confidence
        answer: asyncio.Future[Floats] = loop.create_future()
        self._waiting.append((model, window, answer))
        if len(self._waiting) == 1:
            loop.call_later(WAIT_S, self._run_waiting)
        return await answer

    def _run_waiting(self) -> None:
        due, self._waiting = [each for each in self._waiting if not each[2].done()], []
        for at in range(0, len(due), MOST):
            some = due[at : at + MOST]
            try:
                answers = self._run([model for model, _, _ in some], [window for _, window, _ in some])
            except Exception as error:  # noqa: BLE001 Each analyzer says so, as it does of its own.
                for _, _, answer in some:
                    answer.set_exception(error)
                continue
            for (_, _, answer), confidence in zip(some, answers, strict=True):
                answer.set_result(confidence)

    def _run(self, models: list[Any], windows: list[Floats]) -> list[Floats]:
        """Return the confidences, each of shape ``(1,)``."""
        size = self._context
        samples = np.zeros((len(models), size + len(windows[0])), dtype="float32")
        for row, model, window in zip(samples, models, windows, strict=True):
            if model._context.shape[1]:
                row[:size] = model._context[0]
            row[size:] = window
        states = models[0]._state if len(models) == 1 else np.concatenate([each._state for each in models], axis=1)
        inputs = {"input": samples, "state": states, "sr": self._sample_rate}
        confidences, states = self._session.run(None, inputs)
        for index, model in enumerate(models):
            model._state = states[:, index : index + 1]
            model._context = samples[index : index + 1, -size:]
            model._last_sr, model._last_batch_size = int(self._sample_rate), 1
        return list(confidences)


_batches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[int, int], Batches]] = WeakKeyDictionary()


def batches_of(session: Any, sample_rate: int) -> Batches:
    """Return what runs `session` in this event loop for audio of `sample_rate` Hz."""
    known = _batches.setdefault(asyncio.get_running_loop(), {})
    key = id(session), sample_rate
    if key not in known:
        known[key] = Batches(session, sample_rate)
    return known[key]


def apply() -> None:
    """Change the analyzer as soon as a bot imports it."""
    wrapt.register_post_import_hook(_change, "pipecat.audio.vad.silero")


def _change(module: ModuleType) -> None:
    analyzer: Any = module.SileroVADAnalyzer
    original = analyzer.analyze_audio
    if getattr(original, "_wsvoice", False):
        return
    original_confidence = analyzer.voice_confidence

    @functools.wraps(original)
    async def analyze_audio(self: Any, buffer: bytes) -> Any:
        # A bot's own subclass may do more, and take longer.
        if type(self) is not analyzer or self.__dict__.get("_wsvoice_asks"):
            return await original(self, buffer)
        needed, audio, model = self._vad_frames_num_bytes, self._vad_buffer + buffer, self._model
        goes_on = model._last_sr in (0, self.sample_rate) and model._last_batch_size in (0, 1)
        if needed <= len(audio) < 2 * needed and goes_on:
            window = np.frombuffer(audio, np.int16, needed // 2).astype(np.float32) / 32768.0
            self._wsvoice_asks = True
            try:
                self._wsvoice_answer = await batches_of(model.session, self.sample_rate).confidence(model, window)
                return self._run_analyzer(buffer)
            except Exception as error:  # noqa: BLE001
                logger.error(f"Error analyzing audio with Silero VAD: {error}")
            finally:
                self._wsvoice_asks, self._wsvoice_answer = False, None
        return self._run_analyzer(buffer)

    @functools.wraps(original_confidence)
    def voice_confidence(self: Any, buffer: bytes) -> Any:
        answer = self.__dict__.get("_wsvoice_answer")
        if answer is None:
            return original_confidence(self, buffer)
        self._maybe_reset_model(answer.item())
        return answer

    analyze_audio._wsvoice = True  # type: ignore[attr-defined]
    analyzer.analyze_audio = analyze_audio
    analyzer.voice_confidence = voice_confidence
