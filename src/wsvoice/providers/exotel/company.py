"""Exotel's facts for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.providers.base import Company

#: https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
FORMATS = {rate: AudioFormat(Encoding.L16, rate) for rate in (8000, 16000, 24000)}
#: Custom parameters of a stream's URL, and characters of all of them together, as they stand in it.
PARAMETER_COUNT, PARAMETERS_LIMIT = 3, 256
#: What names the sample rate in a stream's URL.
RATE_NAMES = ("sample-rate", "sample_rate")


class ExotelCompany(Company):
    """Exotel, which signs nothing."""

    name: ClassVar[str] = "exotel"
    title: ClassVar[str] = "Exotel"
    #: None is a signing secret: the first two are what the applet's URL carries instead of a stream token.
    credential_names: ClassVar[tuple[str, ...]] = (
        "EXOTEL_STREAM_USER",
        "EXOTEL_STREAM_PASSWORD",
        "EXOTEL_SAMPLE_RATE",
        "EXOTEL_ACCOUNT_SID",
        "EXOTEL_API_KEY",
        "EXOTEL_API_TOKEN",
        "EXOTEL_SUBDOMAIN",
    )
    signs: ClassVar[bool] = False
    webhook_method: ClassVar[Literal["GET", "POST"]] = "GET"
    #: https://developer.exotel.com/docs/agentstream/developer-guide
    frame_ms: ClassVar[int] = 100

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self.sample_rate = int(self.setting("EXOTEL_SAMPLE_RATE", "8000", map(str, FORMATS)))
