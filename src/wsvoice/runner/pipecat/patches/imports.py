"""Something to do right after a module was imported, whenever that is."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Work = Callable[[ModuleType], None]


class _Hook(importlib.abc.MetaPathFinder):
    """Finds one module as it would be found without it, and works on it once it has run."""

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        self.work = work
        self._searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, hook: _Hook) -> None:
        self._loader = loader
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to show its own loader: what reads a package's data goes by it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(self._hook)
        self._hook.work(module)


def when_imported(name: str, work: Work) -> None:
    """Call `work` with the module `name`: now if it is imported, else right after it will be."""
    module = sys.modules.get(name)
    if module is not None:
        work(module)
        return
    if not any(isinstance(each, _Hook) and (each.name, each.work) == (name, work) for each in sys.meta_path):
        sys.meta_path.insert(0, _Hook(name, work))
