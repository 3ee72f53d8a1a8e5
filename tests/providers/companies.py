"""
A company with both of its halves, for tests that play both ends in one process; the product never has it so.

``from tests.providers.companies import Twilio, TwilioStream`` gives the whole company, and its stream's two ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cache
from typing import Any

from wsvoice.errors import RemoteProtocolError
from wsvoice.providers import PROVIDERS, load_server, load_simulator
from wsvoice.providers.base import NoStream, Redirect, Side, StreamRequest
from wsvoice.providers.media_stream import Stream


class _Whole:
    """What tests ask of both halves together."""

    def stream(self, side: Side, quirks: Mapping[str, str] | None = None) -> Stream:
        """Return a stream's end, the carrier's as it is in a test call."""
        half = self._server if side is Side.BOT else self._simulator
        end: Stream = half.stream(self.deviating(quirks))
        return end

    def deviating(self, quirks: Mapping[str, str] | None) -> Any:
        """Return the same company as it is with `quirks`."""
        other = copy(self)
        other.chosen_quirks = quirks or {}
        return other

    def read_answer(self, body: bytes, content_type: str, **options: Any) -> StreamRequest:
        """Read the document that a call begins with, which asks for a stream at once."""
        read = self._simulator.read_answer(self, body, content_type, **options)
        if isinstance(read, NoStream):
            raise RemoteProtocolError(read.kind, read.reason)
        if isinstance(read, Redirect):
            raise RemoteProtocolError("redirected", f"a <Redirect> leads to {read.callback.url}")
        assert isinstance(read, StreamRequest)
        return read

    def read_document(self, body: bytes, content_type: str, **options: Any) -> StreamRequest | Redirect | NoStream:
        """Read a later document."""
        read: StreamRequest | Redirect | NoStream = self._simulator.read_answer(
            self, body, content_type, first=False, **options
        )
        return read

    def __getattr__(self, name: str) -> Any:
        if name in ("is_authorised", "read_command", "read_answer_request", "command_answer", "api_error"):
            return getattr(self.fake_api(), name)
        raise AttributeError(name)


@cache
def whole(name: str) -> Any:
    """Return a class that is both halves of the provider called `name`."""
    server, simulator = type(load_server(name)), type(load_simulator(name))
    return type(PROVIDERS[name], (_Whole, server, simulator), {"_server": server, "_simulator": simulator})


def load_provider(name: str, credentials: Mapping[str, str] | None = None) -> Any:
    """Return both halves of the provider called `name`."""
    load_server(name)
    return whole(name)(credentials or {})


def __getattr__(attribute: str) -> Any:
    for name, title in PROVIDERS.items():
        if attribute == title:
            return whole(name)
        if attribute == f"{title}Stream":
            return lambda side: whole(name)({}).stream(side)
    raise AttributeError(attribute)
