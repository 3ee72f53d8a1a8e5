"""
A call as a page: one HTML file that shows and plays a trace anywhere, and a picture of it for a terminal.

Pure: traces in, text out. Whatever a trace holds was said by strangers: no byte of it becomes markup or script.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsvoice.page.document import render_page
    from wsvoice.page.picture import Line, draw_picture

_MODULES = {"render_page": "document", "Line": "picture", "draw_picture": "picture"}

__all__ = ["Line", "draw_picture", "render_page"]

if not TYPE_CHECKING:  # A type checker would accept any name.

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"wsvoice.page.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
