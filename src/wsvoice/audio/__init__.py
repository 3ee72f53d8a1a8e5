"""
Audio: wire formats, sound files, levels, and resampling with a few milliseconds of delay.

Everything here is synchronous. ``pcm`` always means 16-bit little-endian mono samples. What computes with samples is
loaded when it is first used: numpy takes a tenth of a second to import, and most modules only name formats.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsvoice.audio.formats import AUDIBLE_LEVEL, PCMU_8K, AudioFormat, Encoding, dbfs, peak, rms

if TYPE_CHECKING:
    from wsvoice.audio.samples import Resampler, Sound, compress, correlations, read_audio, resample, write_wav

__all__ = [
    "AUDIBLE_LEVEL",
    "PCMU_8K",
    "AudioFormat",
    "Encoding",
    "Resampler",
    "Sound",
    "compress",
    "correlations",
    "dbfs",
    "peak",
    "read_audio",
    "resample",
    "rms",
    "write_wav",
]

if not TYPE_CHECKING:  # A type checker would accept any name.

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(import_module("wsvoice.audio.samples"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
