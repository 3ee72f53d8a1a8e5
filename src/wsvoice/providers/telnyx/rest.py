"""
Requests to Telnyx's API: https://developers.telnyx.com/docs/v1/call-control/sending-commands
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from wsvoice.call import Call
from wsvoice.errors import ConfigError
from wsvoice.providers.base import Company, HttpRequest
from wsvoice.providers.fields import write_object
from wsvoice.providers.telnyx.company import stable_uuid

API_BASE_URL = "https://api.telnyx.com/v2"


def command(company: Company, call: Call, action: str, content: Mapping[str, Any]) -> HttpRequest:
    """
    Return the request that carries out `action` for `call`.

    Its ``command_id`` is the same each time, so that an event that came twice is answered once.

    Raises:
        ConfigError: If the API's key is not known.
    """
    key = company.credential("TELNYX_API_KEY")
    if not key:
        raise ConfigError(
            "a Call Control call is answered through Telnyx's API, whose key is not known",
            hint="set TELNYX_API_KEY, or use a TeXML application, which needs none",
        )
    base = (company.credential("TELNYX_BASE_URL") or API_BASE_URL).rstrip("/")
    return HttpRequest(
        "POST",
        f"{base}/calls/{quote(call.call_id, safe='')}/actions/{action}",
        {"authorization": f"Bearer {key}", "content-type": "application/json", "accept": "application/json"},
        write_object({**content, "command_id": stable_uuid(action, call.call_id)}).encode(),
    )
