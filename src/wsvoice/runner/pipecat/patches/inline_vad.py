"""
Silero's voice activity detection runs where its audio is, not in a thread of its own.

pipecat hands every piece of audio to a thread, also the two of five that complete no window. A window takes about
0.2 ms; the way to a thread and back takes as long, and the threads of many calls wait for each other. The analyzer and
its results are the same.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import wrapt


def apply() -> None:
    """Change the analyzer as soon as a bot imports it."""
    wrapt.register_post_import_hook(_change, "pipecat.audio.vad.silero")


def _change(module: ModuleType) -> None:
    analyzer: Any = module.SileroVADAnalyzer
    original = analyzer.analyze_audio
    if getattr(original, "_wsvoice", False):
        return

    @functools.wraps(original)
    async def analyze_audio(self: Any, buffer: bytes) -> Any:
        # A bot's own subclass may do more, and take longer.
        return self._run_analyzer(buffer) if type(self) is analyzer else await original(self, buffer)

    analyze_audio._wsvoice = True  # type: ignore[attr-defined]
    analyzer.analyze_audio = analyze_audio
