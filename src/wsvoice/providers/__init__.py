"""
The providers that wsvoice knows: the name of a package here, and what its classes' names begin with.

A new provider is one package, one line here and its golden messages under ``tests/golden/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from wsvoice.errors import UsageError

if TYPE_CHECKING:
    from wsvoice.providers.account import Account
    from wsvoice.providers.base import Company, Server, Simulator

PROVIDERS: dict[str, str] = {
    "twilio": "Twilio",
    "telnyx": "Telnyx",
    "plivo": "Plivo",
    "exotel": "Exotel",
    "signalwire": "SignalWire",
    "bandwidth": "Bandwidth",
    "vonage": "Vonage",
    "asterisk": "Asterisk",
}


def load_company(name: str, credentials: Mapping[str, str] | None = None) -> Company:
    """Return the facts about the provider called `name`; arguments and errors as in :func:`load_server`."""
    company: Company = _load(name, "company")(credentials or {})
    return company


def load_server(name: str, credentials: Mapping[str, str] | None = None) -> Server:
    """
    Return the server's half of the provider called `name`.

    Args:
        name: As in ``wsvoice run -t NAME``.
        credentials: Secrets and settings by environment variable name.

    Raises:
        UsageError: If there is none of that name.
        ConfigError: If a setting has a value that it does not take.
    """
    server: Server = _load(name, "server")(credentials or {})
    return server


def load_account(name: str, credentials: Mapping[str, str] | None = None) -> Account:
    """Return the REST half of the provider called `name`; arguments and errors as in :func:`load_server`."""
    account: Account = _load(name, "account")(credentials or {})
    return account


def load_simulator(
    name: str, credentials: Mapping[str, str] | None = None, quirks: Mapping[str, str] | None = None
) -> Simulator:
    """Return the simulator's half of the provider called `name`, which deviates by `quirks`; as :func:`load_server`."""
    simulator: Simulator = _load(name, "simulator")(credentials or {})
    simulator.chosen_quirks = quirks or {}
    return simulator


def _load(name: str, part: Literal["account", "company", "server", "simulator"]) -> Any:
    if name not in PROVIDERS:
        known = ", ".join(PROVIDERS)
        raise UsageError(f"no provider is called {name!r}", hint=f"known are: {known}")
    module = import_module(f"wsvoice.providers.{name}.{part}")
    return getattr(module, PROVIDERS[name] + part.title())
