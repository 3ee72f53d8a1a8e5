"""Exotel's facts for both ends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal
from urllib.parse import quote, urlencode, urlunsplit

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import Stage
from wsvoice.errors import LocalProtocolError
from wsvoice.providers.base import Company
from wsvoice.providers.urls import check_stream_url, path_part

#: https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
FORMATS = {rate: AudioFormat(Encoding.L16, rate) for rate in (8000, 16000, 24000)}
#: Custom parameters of a stream's URL, and characters of all of them together, as they stand in it.
PARAMETER_COUNT, PARAMETERS_LIMIT = 3, 256
#: What names the sample rate in a stream's URL.
RATE_NAMES = ("sample-rate", "sample_rate")
# Digits of a number as it is dialled at home, without the 0.
_HOME_DIGITS = 8
#: Where the API is unless ``EXOTEL_SUBDOMAIN`` says otherwise: https://developer.exotel.com/docs/voice-v1/overview
API_HOST = "api.exotel.com"
#: Characters of the stream's URL in a request for a call, of its custom field, and seconds that such a call may last:
#: https://developer.exotel.com/docs/agentstream/connect-voice-ai
STREAM_URL_LIMIT, CUSTOM_FIELD_LIMIT, TIME_LIMIT_S = 600, 128, 14_400
#: What ``Status`` says of a call: https://developer.exotel.com/docs/references/error-codes
STAGES: Mapping[str, Stage] = {
    "queued": "queued",
    "ringing": "ringing",
    "in-progress": "answered",
    "completed": "completed",
    "busy": "busy",
    "no-answer": "no-answer",
    "failed": "failed",
    "canceled": "canceled",
}


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
        "EXOTEL_API_BASE_URL",
    )
    signs: ClassVar[bool] = False
    webhook_method: ClassVar[Literal["GET", "POST"]] = "GET"
    #: https://developer.exotel.com/docs/agentstream/developer-guide
    frame_ms: ClassVar[int] = 100

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self.sample_rate = int(self.setting("EXOTEL_SAMPLE_RATE", "8000", map(str, FORMATS)))

    def stream_address(self, stream_url: str, parameters: Mapping[str, str]) -> str:
        """
        Return a stream's URL with the sample rate and the user's parameters as its query.

        Raises:
            LocalProtocolError: If it is none, or Exotel does not take the parameters.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
        """
        url = check_stream_url(stream_url)
        encoded = urlencode(parameters, quote_via=quote)
        if any(not name or name in RATE_NAMES for name in parameters):
            raise LocalProtocolError("bad-parameter", "a parameter has no name, or the name of the sample rate")
        if len(parameters) > PARAMETER_COUNT:
            raise LocalProtocolError(
                "many-parameters", f"there are {len(parameters)} parameters; Exotel takes {PARAMETER_COUNT}"
            )
        if len(encoded) > PARAMETERS_LIMIT:
            raise LocalProtocolError(
                "long-parameter",
                f"the parameters have {len(encoded)} characters in the URL; Exotel takes {PARAMETERS_LIMIT}",
            )
        rate = f"sample-rate={self.sample_rate}" if self.sample_rate != 8000 else ""
        return urlunsplit(url._replace(query="&".join(part for part in (url.query, rate, encoded) if part)))

    def api_url(self, version: str, *path: str) -> str:
        """
        Return the address of one of the account's resources, in a version of the API such as ``v1``.

        https://developer.exotel.com/docs/voice-v1/overview
        """
        base = self.credential("EXOTEL_API_BASE_URL").rstrip("/") or f"https://{self._api_host()}"
        account = self.credential("EXOTEL_ACCOUNT_SID")
        return "/".join((base, version, "Accounts", *map(path_part, (account, *path))))

    def _api_host(self) -> str:
        """Return the API's host; the documents write it behind an ``@``, and users write it in short."""
        written = re.sub("^(https?://)?@?", "", self.credential("EXOTEL_SUBDOMAIN")).strip("/ ")
        if not written:
            return API_HOST
        return written if "." in written.removeprefix("api.") else f"{written}.exotel.com"


def same_number(one: str, other: str) -> bool:
    """Whether two spellings are of the same number: ``+918047491899`` is ``08047491899`` at home."""
    longer, shorter = sorted((one.lstrip("+0"), other.lstrip("+0")), key=len, reverse=True)
    return len(shorter) >= _HOME_DIGITS and longer.endswith(shorter)
