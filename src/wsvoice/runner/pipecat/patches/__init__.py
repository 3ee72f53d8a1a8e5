"""
Patches applied to pipecat at run time: one module each, listed in :data:`PATCHES`.

Each can be disabled by its name, ``WSVOICE_DISABLE_PATCHES=input-vad,old-params``, and is disabled automatically if
what it relies on has changed.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection

from wsvoice import pipecat_moved
from wsvoice.config import did_you_mean
from wsvoice.errors import ConfigError
from wsvoice.runner.pipecat import is_supported

#: Each is a module of this package whose ``apply()`` may be called any number of times, and a feature in
#: :data:`~wsvoice.pipecat_contracts.RUNNER_FEATURES`, which says what is lost without it.
PATCHES = (
    "create-transport",
    "old-modules",
    "old-params",
    "input-vad",
    "serializers",
    "shared-models",
    "causes",
    "quiet-audio",
    "inline-vad",
    "frame-queue",
    "quick-start",
)


def install(disabled: Collection[str] = frozenset()) -> tuple[str, ...]:
    """
    Change pipecat as ``wsvoice run`` does, for an application with a server of its own.

    Old module names lead to the new ones, and params, serializers and models work as ``docs/from-pipecat-runner.md``
    lists it. Call it before the first import from pipecat; a second call does nothing that was done.

    Args:
        disabled: The names of patches that are not to be applied; those that were applied before stay.

    Returns:
        The names of the patches that are applied: not disabled, and possible with this pipecat.

    Raises:
        ConfigError: If `disabled` names a patch that does not exist.
    """
    for name in sorted(disabled):
        if name not in PATCHES:
            raise ConfigError(
                f"there is no change in pipecat named {name!r} that could be left out",
                hint=did_you_mean(name, PATCHES) or f"known are: {', '.join(PATCHES)}",
            )
    pipecat_moved.remove_finder()
    applied = tuple(name for name in PATCHES if name not in disabled and is_supported(name))
    for name in applied:
        importlib.import_module(f"{__name__}.{name.replace('-', '_')}").apply()
    return applied
