"""What a request to a provider's API is read as."""

from __future__ import annotations

from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import WebhookRequest
from wsvoice.providers.fake_api import FakeApi


def hung_up(provider: FakeApi, request: WebhookRequest) -> str | None:
    """Return the call that a request ends; ``None`` if it ends none."""
    try:
        command = provider.read_command(request)
    except RemoteProtocolError:
        return None
    return command.call_id if command is not None and command.kind == "hang-up" else None
