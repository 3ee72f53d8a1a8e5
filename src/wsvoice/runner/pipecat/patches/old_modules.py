"""
Modules that pipecat has moved: their old names lead to the new ones.

Nothing is imported before a bot asks for it. The old name is bound to the very same module, so its classes are the
same too.
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
    """Finds what :data:`MOVED` lists, where nothing else has found it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to load an old name, or ``None``."""
        if fullname in MOVED or fullname in PACKAGES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in PACKAGES)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module's new self in its place."""
        new_name = MOVED.get(module.__name__)
        if new_name is None:
            return
        notices.warn(f"{module.__name__} is now {new_name}: change the import")
        # The import system takes what stands there after this.
        sys.modules[module.__name__] = importlib.import_module(new_name)


def apply() -> None:
    """Look for old names behind everything else, so that a pipecat that has them is left alone."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.append(OldModules())
