"""
A transcriber on this machine, which sends nothing anywhere: Whisper, by faster-whisper (``wsvoice[transcribe]``).

https://github.com/SYSTRAN/faster-whisper
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from wsvoice.audio import resample
from wsvoice.errors import UsageError

if TYPE_CHECKING:
    from wsvoice.words.transcribers import Transcribe

#: The model that is used unless another is named: some 150 MB, for most languages.
MODEL = "base"
#: What Whisper hears: https://github.com/openai/whisper/blob/main/whisper/audio.py
_RATE = 16_000


@cache
def load_model(model: str | None) -> Transcribe:
    """
    Return a transcriber that uses a model of Whisper.

    Args:
        model: Its folder, or its name, such as ``tiny.en``; then faster-whisper fetches it unless it has it already.
            ``None`` for :data:`MODEL`.

    Raises:
        UsageError: If faster-whisper is not installed, or the model cannot be loaded.
    """
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise UsageError(
            f"the transcriber offline needs faster-whisper: {error}", hint="pip install 'wsvoice[transcribe]'"
        ) from None
    name = model or MODEL
    try:
        # Of the processors, some are left for calls of other processes.
        threads = max(1, (os.cpu_count() or 1) // 2)
        whisper = WhisperModel(name, device="cpu", compute_type="int8", cpu_threads=threads)
    # What comes from the libraries that it loads a model with, and from those that fetch it, has nothing in common.
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the transcriber offline cannot load the model {name}: {why}",
            hint="--transcriber-model takes the folder of a model, or a name such as base or tiny.en, which is fetched"
            " from the network once",
        ) from error

    def transcribe(pcm: bytes, sample_rate: int, language: str) -> str:
        samples = np.frombuffer(resample(pcm, sample_rate, _RATE), "<i2").astype(np.float32) / 32768
        # Without timestamps, and without the words before: a turn is short, and stands for itself.
        segments, _ = whisper.transcribe(
            samples, language=language, condition_on_previous_text=False, without_timestamps=True
        )
        return " ".join(each.text for each in segments)

    return transcribe
