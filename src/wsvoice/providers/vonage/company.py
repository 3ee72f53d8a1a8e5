"""Vonage's facts for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.providers.base import Company

#: By ``content-type``: https://developer.vonage.com/en/voice/voice-api/concepts/websockets
FORMATS = {f"audio/l16;rate={rate}": AudioFormat(Encoding.L16, rate) for rate in (8000, 16000, 24000)}
#: Bytes of the ``headers`` that an NCCO gives a WebSocket.
#: https://developer.vonage.com/en/voice/voice-api/ncco-reference#websocket-endpoint
HEADERS_LIMIT = 512
#: Fields of a stream's first event that are none of the user's parameters.
OWN_FIELDS = frozenset({"event", "content-type", "call_id"})


class VonageCompany(Company):
    """Vonage, which signs its webhooks with the account's signature secret."""

    name: ClassVar[str] = "vonage"
    title: ClassVar[str] = "Vonage"
    codes_page: ClassVar[str] = "https://developer.vonage.com/en/api-errors"
    credential_names: ClassVar[tuple[str, ...]] = (
        "VONAGE_SIGNATURE_SECRET",
        "VONAGE_APPLICATION_ID",
        "VONAGE_PRIVATE_KEY",
        "VONAGE_SAMPLE_RATE",
        "VONAGE_API_BASE_URL",
    )

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self.content_type = f"audio/l16;rate={self.setting('VONAGE_SAMPLE_RATE', '16000', ('8000', '16000', '24000'))}"
