"""
Params of older pipecat: renamed ones are translated, and unknown ones are reported.

pipecat's params are pydantic models that silently ignore unknown fields.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt
from pipecat.transports.base_transport import TransportParams

from wsvoice.config import did_you_mean
from wsvoice.runner.pipecat.patches.notices import notices

#: Old names and new names.
RENAMED = {
    "vad_enabled": "audio_in_enabled",
    "vad_audio_passthrough": "audio_in_passthrough",
    "camera_in_enabled": "video_in_enabled",
    "camera_out_enabled": "video_out_enabled",
    "camera_out_is_live": "video_out_is_live",
    "camera_out_width": "video_out_width",
    "camera_out_height": "video_out_height",
    "camera_out_bitrate": "video_out_bitrate",
    "camera_out_framerate": "video_out_framerate",
    "camera_out_color_format": "video_out_color_format",
}
#: Old params that only ever switched something on; false has no effect.
SWITCHES = frozenset({"vad_enabled", "vad_audio_passthrough"})
#: Params that moved elsewhere but still work, with their new place.
KEPT = {
    "vad_analyzer": "LLMUserAggregatorParams(vad_analyzer=…), or a VADProcessor in the pipeline",
    "turn_analyzer": "a TurnAnalyzerUserTurnStopStrategy in LLMUserAggregatorParams(user_turn_strategies=…)",
}
#: The key of a pipeline's ``StartFrame`` metadata that says whether the caller may interrupt the bot.
ALLOW_INTERRUPTIONS = "allow_interruptions"

Translate = Callable[[type[Any], dict[str, Any]], dict[str, Any]]


def apply() -> None:
    """Make the params of transports and pipelines accept their old fields."""
    _translate_arguments(TransportParams, _transport_params)
    wrapt.register_post_import_hook(_change_pipeline_params, "pipecat.pipeline.worker")


def _change_pipeline_params(worker: ModuleType) -> None:
    _translate_arguments(worker.PipelineParams, _pipeline_params)


def _translate_arguments(model: type[Any], translate: Translate) -> None:
    original = model.__init__
    if getattr(original, "_wsvoice", False):
        return

    @functools.wraps(original)
    def __init__(self: Any, /, **arguments: Any) -> None:
        kind = type(self)
        unknown = arguments.keys() - kind.model_fields.keys()
        if not unknown:
            original(self, **arguments)
            return
        kept = {name: arguments[name] for name in KEPT.keys() & unknown}
        original(self, **translate(kind, arguments))
        for name, value in kept.items():
            # Stored beside the model's fields, it is copied with them.
            object.__setattr__(self, name, value)

    __init__._wsvoice = True  # type: ignore[attr-defined]
    model.__init__ = __init__


def _transport_params(kind: type[Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments under their new names, and warn of old and unknown ones."""
    fields = kind.model_fields
    known: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in fields:
            known[name] = value
        elif name in KEPT:
            _check(name, value)
            notices.warn(
                f"{kind.__name__}({name}=…) is from older pipecat: it works here; its new place is {KEPT[name]}"
            )
        elif name in RENAMED:
            new_name = RENAMED[name]
            notices.warn(f"{kind.__name__}({name}=…) is now {new_name}=…: change it")
            if name not in SWITCHES:
                known[new_name] = arguments.get(new_name, value)
        else:
            hint = did_you_mean(name, [*fields, *KEPT]) or "pipecat has no such field"
            notices.warn(f"{kind.__name__}({name}=…) is ignored: {hint}")
    for name in SWITCHES & arguments.keys():
        if arguments[name]:
            known[RENAMED[name]] = True
    return known


def _check(name: str, value: Any) -> None:
    from pipecat.audio.turn.base_turn_analyzer import BaseTurnAnalyzer
    from pipecat.audio.vad.vad_analyzer import VADAnalyzer

    kind = VADAnalyzer if name == "vad_analyzer" else BaseTurnAnalyzer
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} takes a {kind.__name__}, got {type(value).__name__}")


def _pipeline_params(kind: type[Any], arguments: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in arguments.items() if name in kind.model_fields}
    for name in arguments.keys() - known.keys():
        if name == ALLOW_INTERRUPTIONS:
            allowed = bool(arguments[name])
            known["start_metadata"] = {**known.get("start_metadata", {}), ALLOW_INTERRUPTIONS: allowed}
            if not allowed:
                notices.warn(
                    f"{kind.__name__}({name}=False) is from older pipecat: it works with vad_analyzer in the "
                    "transport's params; otherwise give the turn strategies enable_interruptions=False"
                )
        elif name == "interruption_strategies":
            notices.warn(
                f"{kind.__name__}({name}=…) is ignored: "
                "use LLMUserAggregatorParams(user_turn_strategies=…), for example with MinWordsUserTurnStartStrategy"
            )
        else:
            hint = did_you_mean(name, list(kind.model_fields)) or "pipecat has no such field"
            notices.warn(f"{kind.__name__}({name}=…) is ignored: {hint}")
    return known
