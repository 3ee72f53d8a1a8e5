"""
Requests to Plivo's API: https://www.plivo.com/docs/voice/api/call
"""

from __future__ import annotations

from urllib.parse import quote

from wsvoice.call import Call
from wsvoice.providers.base import Company, HttpRequest

API_BASE_URL = "https://api.plivo.com/v1"


def hang_up(company: Company, call: Call) -> HttpRequest | None:
    """
    Return the request that ends `call`; ``None`` if id or token of the account are not known.

    https://www.plivo.com/docs/voice/api/call/hangup-a-call
    """
    account, token = company.credential("PLIVO_AUTH_ID"), company.credential("PLIVO_AUTH_TOKEN")
    if not account or not token:
        return None
    base = (company.credential("PLIVO_API_BASE_URL") or API_BASE_URL).rstrip("/")
    url = f"{base}/Account/{quote(account, safe='')}/Call/{quote(call.call_id, safe='')}/"
    return HttpRequest("DELETE", url, basic_auth=(account, token))
