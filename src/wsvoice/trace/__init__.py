"""
Traces: the one record of a call, written while it runs and read by everything that shows, compares or repeats it.

Pure: what a trace is, how it is written and how it is read. docs/trace.md describes the format. Each name is loaded
when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsvoice.trace.background import LiveTrace
    from wsvoice.trace.format import FORMAT, Header, LogLine, TraceEvent, WireMessage
    from wsvoice.trace.packing import pack
    from wsvoice.trace.reader import Trace, read_trace
    from wsvoice.trace.redaction import Masks
    from wsvoice.trace.writer import TraceWriter

_MODULES = {
    "FORMAT": "format",
    "Header": "format",
    "LogLine": "format",
    "TraceEvent": "format",
    "WireMessage": "format",
    "LiveTrace": "background",
    "Masks": "redaction",
    "Trace": "reader",
    "TraceWriter": "writer",
    "pack": "packing",
    "read_trace": "reader",
}

__all__ = [
    "FORMAT",
    "Header",
    "LiveTrace",
    "LogLine",
    "Masks",
    "Trace",
    "TraceEvent",
    "TraceWriter",
    "WireMessage",
    "pack",
    "read_trace",
]

if not TYPE_CHECKING:  # A type checker would accept any name.

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"wsvoice.trace.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
