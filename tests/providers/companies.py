"""
A company with both of its halves, for tests that play both ends in one process; the product never has it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsvoice.providers import load_server, load_simulator
from wsvoice.providers.base import Side, Stream


def load_provider(name: str, credentials: Mapping[str, str] | None = None) -> Any:
    """Return an object that is both halves of the provider called `name`."""
    server, simulator = type(load_server(name, credentials)), type(load_simulator(name, credentials))

    def stream(self: Any, side: Side, quirks: Mapping[str, str] | None = None) -> Stream:
        end: Stream = server.stream(self) if side is Side.BOT else simulator.stream(self, quirks)
        return end

    both = type(f"Whole{server.__name__.removesuffix('Server')}", (server, simulator), {"stream": stream})
    return both(credentials or {})
