"""Which libraries a bot has imported."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Collection

_LIBRARIES = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN = __name__.partition(".")[0]


def imported_libraries(before: Collection[str]) -> tuple[str, ...]:
    """Return the names of installed modules that are imported now and not among those `before`, in their order."""
    return tuple(
        name
        for name, module in list(sys.modules.items())
        if name not in before
        and name.partition(".")[0] != _OWN
        and (getattr(module, "__file__", None) or "").startswith(_LIBRARIES)
    )
