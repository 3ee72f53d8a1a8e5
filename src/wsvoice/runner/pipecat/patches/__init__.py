"""
What is changed in pipecat at run time: one module each, listed in :data:`PATCHES`.

Each has a test in ``tests/runner/test_patches.py`` that fails when pipecat changes what it relies on, and each can
be switched off by its name: ``WSVOICE_DISABLE_PATCHES=input-vad,old-params``.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass

from wsvoice import moved
from wsvoice.config import did_you_mean
from wsvoice.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Patch:
    """
    One change in pipecat.

    Attributes:
        name: What switches it off.
        module: Where it is, in this package; its ``apply()`` may be called any number of times.
        reason: What would be without it.
    """

    name: str
    module: str
    reason: str


PATCHES = (
    Patch(
        "create-transport",
        "create_transport",
        "pipecat's create_transport needs the provider's credentials, and builds a transport without the call",
    ),
    Patch(
        "old-modules",
        "old_modules",
        "bots that import pipecat.transports.network and pipecat.vad, which are no longer there, could not be loaded",
    ),
    Patch(
        "old-params",
        "old_params",
        "params that pipecat has renamed, and misspelt ones, are dropped without a word",
    ),
    Patch(
        "input-vad",
        "input_vad",
        "vad_analyzer and turn_analyzer in a transport's params do nothing",
    ),
    Patch(
        "serializers",
        "serializers",
        "a serializer that a bot makes without the provider's credentials ends every call with a ValueError",
    ),
    Patch(
        "shared-models",
        "shared_models",
        "every call loads the voice detection's and the turn detection's models again, while all others wait",
    ),
    Patch(
        "causes",
        "causes",
        "a call's end does not say which service failed, or what a handler of the bot's raised",
    ),
)


def apply_patches(disabled: Collection[str] = frozenset()) -> tuple[str, ...]:
    """
    Change pipecat, but for the patches in `disabled`; what was changed before stays so.

    Returns:
        The names of the patches that were not disabled.

    Raises:
        ConfigError: If `disabled` names a patch that there is not.
    """
    known = [patch.name for patch in PATCHES]
    for name in sorted(disabled):
        if name not in known:
            raise ConfigError(
                f"there is no change in pipecat named {name!r} that could be left out",
                hint=did_you_mean(name, known) or f"known are: {', '.join(known)}",
            )
    moved.remove_finder()
    applied = [patch for patch in PATCHES if patch.name not in disabled]
    for patch in applied:
        importlib.import_module(f"{__name__}.{patch.module}").apply()
    return tuple(patch.name for patch in applied)
