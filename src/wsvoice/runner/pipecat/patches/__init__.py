"""
What is changed in pipecat at run time: one module each, listed in :data:`PATCHES`.

Each can be switched off by its name, ``WSVOICE_DISABLE_PATCHES=input-vad,old-params``, and is switched off by itself
where what it relies on has changed.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection

from wsvoice import pipecat_moved
from wsvoice.config import did_you_mean
from wsvoice.errors import ConfigError
from wsvoice.runner.pipecat import is_supported

#: Each is a module of this package whose ``apply()`` may be called any number of times, and a feature in
#: :data:`~wsvoice.pipecat_contracts.RUNNER_FEATURES`, which says what would be without it.
PATCHES = ("create-transport", "old-modules", "old-params", "input-vad", "serializers", "shared-models", "causes")


def apply_patches(disabled: Collection[str] = frozenset()) -> tuple[str, ...]:
    """
    Change pipecat, but for the patches in `disabled`; what was changed before stays so.

    Returns:
        The names of the patches that were made: not disabled, and possible with this pipecat.

    Raises:
        ConfigError: If `disabled` names a patch that there is not.
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
