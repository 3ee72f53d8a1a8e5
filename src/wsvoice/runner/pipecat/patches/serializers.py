"""
pipecat's serializers can be created without credentials.

By default they need them for hanging up by REST. Without credentials they do not hang up; the call ends with its
stream, which the session closes.
"""

from __future__ import annotations

import functools
import inspect
from types import ModuleType
from typing import Any

import wrapt

from wsvoice.runner.pipecat.patches.notices import notices

#: The serializers that hang up, by module.
SERIALIZERS = {
    "pipecat.serializers.twilio": "TwilioFrameSerializer",
    "pipecat.serializers.telnyx": "TelnyxFrameSerializer",
    "pipecat.serializers.plivo": "PlivoFrameSerializer",
}
#: The beginning of pipecat's message for missing credentials.
COMPLAINT = "auto_hang_up is enabled but missing required parameters"


def apply() -> None:
    """Change each serializer as soon as it is imported."""
    for name in SERIALIZERS:
        wrapt.register_post_import_hook(_change, name)


def _change(module: ModuleType) -> None:
    kind: Any = getattr(module, SERIALIZERS[module.__name__])
    original = kind.__init__
    if getattr(original, "_wsvoice", False):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
            return
        except ValueError as error:
            if not str(error).startswith(COMPLAINT):
                raise
        given = signature.bind(self, *args, **kwargs)
        params = given.arguments.get("params") or kind.InputParams()
        given.arguments["params"] = params.model_copy(update={"auto_hang_up": False})
        original(*given.args, **given.kwargs)
        notices.warn(
            f"{kind.__name__} has no credentials: it does not hang up by itself; the call ends with its stream"
        )

    __init__._wsvoice = True  # type: ignore[attr-defined]
    kind.__init__ = __init__
