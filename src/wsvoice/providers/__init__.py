"""
The providers that wsvoice knows: a name, and where its class is.

A new provider is one module, one line here and its golden messages under ``tests/golden/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from wsvoice.errors import UsageError

if TYPE_CHECKING:
    from wsvoice.providers.base import Provider

PROVIDERS: dict[str, str] = {
    "twilio": "wsvoice.providers.twilio:Twilio",
    "telnyx": "wsvoice.providers.telnyx:Telnyx",
    "plivo": "wsvoice.providers.plivo:Plivo",
    "exotel": "wsvoice.providers.exotel:Exotel",
    "signalwire": "wsvoice.providers.signalwire:SignalWire",
}


def load_provider(name: str, credentials: Mapping[str, str] | None = None) -> Provider:
    """
    Return the provider called `name`, with its `credentials` by environment variable name.

    Raises:
        UsageError: If there is none of that name.
    """
    try:
        module, _, attribute = PROVIDERS[name].partition(":")
    except KeyError:
        known = ", ".join(PROVIDERS)
        raise UsageError(f"no provider is called {name!r}", hint=f"known are: {known}") from None
    provider: Provider = getattr(import_module(module), attribute)(credentials or {})
    return provider
