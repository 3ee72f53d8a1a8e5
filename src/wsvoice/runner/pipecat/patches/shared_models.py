"""
pipecat's small models are loaded once per process, not once per call.

The state of a call is in the analyzer around the model, so sharing changes no result; ONNX Runtime sessions may be used
from many threads (https://onnxruntime.ai/docs/api/python/api_summary.html).
"""

from __future__ import annotations

import threading
from os import PathLike, fspath
from types import ModuleType
from typing import Any

import wrapt

#: The modules that load a model, each with its name for ONNX Runtime.
USERS = {
    "pipecat.audio.vad.silero": "onnxruntime",
    "pipecat.audio.turn.smart_turn.local_smart_turn_v3": "ort",
}
_OPTIONS = ("inter_op_num_threads", "intra_op_num_threads", "execution_mode", "graph_optimization_level")


class SharedRuntime:
    """ONNX Runtime with shared sessions: the same model with the same options is one session."""

    def __init__(self, runtime: ModuleType) -> None:
        self._runtime = runtime
        self._sessions: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def InferenceSession(self, model: Any, sess_options: Any = None, providers: Any = None, **others: Any) -> Any:
        """Return the session for a model file, loaded on first use."""
        if others or not isinstance(model, (str, PathLike)):
            return self._runtime.InferenceSession(model, sess_options, providers, **others)
        options = tuple(getattr(sess_options, name) for name in _OPTIONS) if sess_options is not None else None
        key = (fspath(model), options, tuple(providers or ()))
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = self._runtime.InferenceSession(model, sess_options, providers)
            return self._sessions[key]


def apply() -> None:
    """Share the models of these modules as soon as a bot imports them."""
    for name in USERS:
        wrapt.register_post_import_hook(_share, name)


def _share(module: ModuleType) -> None:
    name = USERS[module.__name__]
    runtime = getattr(module, name)
    if isinstance(runtime, SharedRuntime):
        return
    setattr(module, name, SharedRuntime(runtime))
    if module.__name__ == "pipecat.audio.vad.silero":
        # Load it while the bot is imported, not while its first caller waits.
        module.SileroVADAnalyzer()
