"""
Modules that pipecat has moved: their old names are aliases of the new ones.

Nothing is imported before a bot imports it. The old name is bound to the same module, so its classes are the same.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

from wsvoice.pipecat_moved import MOVED, PACKAGES
from wsvoice.runner.pipecat.patches.notices import notices


class OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of :data:`MOVED` that no other finder has found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to load an old name, or ``None``."""
        if fullname in MOVED or fullname in PACKAGES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in PACKAGES)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Replace the module by the one of the new name."""
        new_name = MOVED.get(module.__name__)
        if new_name is None:
            return
        notices.warn(f"{module.__name__} is now {new_name}: change the import")
        # The import system uses this entry afterwards.
        sys.modules[module.__name__] = importlib.import_module(new_name)


def apply() -> None:
    """Add the finder behind all others, so that a pipecat that still has the old names is not changed."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.append(OldModules())
