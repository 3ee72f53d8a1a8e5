"""Vonage's facts for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import Stage
from wsvoice.providers.base import Company, HttpRequest, WebhookRequest
from wsvoice.providers.fields import write_object
from wsvoice.providers.tokens import bearer_header, read_key
from wsvoice.providers.urls import form_request, path_part

#: By ``content-type``: https://developer.vonage.com/en/voice/voice-api/concepts/websockets
FORMATS = {f"audio/l16;rate={rate}": AudioFormat(Encoding.L16, rate) for rate in (8000, 16000, 24000)}
#: Bytes of the ``headers`` that an NCCO gives a WebSocket.
#: https://developer.vonage.com/en/voice/voice-api/ncco-reference#websocket-endpoint
HEADERS_LIMIT = 512
#: Fields of a stream's first event that are none of the user's parameters.
OWN_FIELDS = frozenset({"event", "content-type", "call_id"})

#: Where calls and applications are, and where numbers and the balance are.
API_BASE_URL, REST_BASE_URL = "https://api.nexmo.com", "https://rest.nexmo.com"
#: How long a token of ours is good for, in seconds.
TOKEN_AGE_S = 60
#: What requests about calls are signed with, and what all others carry.
#: https://developer.vonage.com/en/getting-started/concepts/authentication
CALL_CREDENTIALS = ("VONAGE_APPLICATION_ID", "VONAGE_PRIVATE_KEY")
NUMBER_CREDENTIALS = ("VONAGE_API_KEY", "VONAGE_API_SECRET")
#: Statuses with which the API refuses a request about a call that has ended; no page says which.
ENDED_STATUSES = frozenset({400, 404})

#: How far a call is, by its status: https://developer.vonage.com/en/voice/voice-api/webhook-reference#event-webhook
STAGES: Mapping[str, Stage] = {
    "started": "queued",
    "ringing": "ringing",
    "answered": "answered",
    "human": "answered",
    "machine": "answered",
    "completed": "completed",
    "busy": "busy",
    "timeout": "no-answer",
    "unanswered": "no-answer",
    "failed": "failed",
    "rejected": "failed",
    "cancelled": "canceled",
}


class VonageCompany(Company):
    """Vonage, which signs its webhooks with the account's signature secret."""

    name: ClassVar[str] = "vonage"
    title: ClassVar[str] = "Vonage"
    codes_page: ClassVar[str] = "https://developer.vonage.com/en/api-errors"
    credential_names: ClassVar[tuple[str, ...]] = (
        "VONAGE_SIGNATURE_SECRET",
        *CALL_CREDENTIALS,
        *NUMBER_CREDENTIALS,
        "VONAGE_SAMPLE_RATE",
        "VONAGE_API_BASE_URL",
    )

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self.content_type = f"audio/l16;rate={self.setting('VONAGE_SAMPLE_RATE', '16000', ('8000', '16000', '24000'))}"

    def private_key(self) -> RSAPrivateKey | None:
        """Return the application's private key; errors as :func:`~wsvoice.providers.tokens.read_key`."""
        return read_key(self.credential("VONAGE_PRIVATE_KEY"), "VONAGE_PRIVATE_KEY")

    def api_url(self, path: str, host: str = API_BASE_URL) -> str:
        """Return the address of `path` on one of the API's hosts, all of which ``VONAGE_API_BASE_URL`` replaces."""
        return (self.credential("VONAGE_API_BASE_URL") or host).rstrip("/") + path

    def call_request(
        self, method: str, call_id: str | None = None, part: str = "", content: Mapping[str, Any] | None = None
    ) -> HttpRequest:
        """
        Return a request about a call, or about all of the application's, signed when it is sent.

        Args:
            call_id: The call's id; ``None`` for all calls.
            part: Of the call's address, such as ``/dtmf``.

        https://developer.vonage.com/en/api/voice
        https://developer.vonage.com/en/getting-started/concepts/authentication#json-web-tokens
        """
        key = self.private_key()
        path = f"/v1/calls{part}" if call_id is None else f"/v1/calls/{path_part(call_id)}{part}"
        body = b"" if content is None else write_object(dict(content)).encode()

        def token(now: float) -> dict[str, str]:
            if key is None:
                return {}
            application = self.credential("VONAGE_APPLICATION_ID")
            claims = {"application_id": application, "iat": int(now), "exp": int(now) + TOKEN_AGE_S}
            return bearer_header(claims, key, about=f"{method} {path}#{body!r}#{now!r}")

        headers = {} if content is None else {"content-type": "application/json"}
        return HttpRequest(method, self.api_url(path), headers, body, timed_headers=token)


def outbound_url(url: str) -> str:
    """Return the answer URL of a call that we place, which says so because none of the webhook's fields does."""
    told = WebhookRequest("GET", url).query
    return url if ("direction", "outbound") in told else form_request(url, "GET", {"direction": "outbound"}).url
