"""Plivo's facts for both ends, and what it signs: https://plivo.com/docs/voice/concepts/signature-validation"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple
from urllib.parse import parse_qsl

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Stage
from wsvoice.providers.base import Company
from wsvoice.providers.fields import squeezed
from wsvoice.providers.signing import Fields
from wsvoice.providers.urls import path_part

#: What messages call the formats: https://docs.plivo.com/docs/voice/xml/audiostream
ENCODINGS: Mapping[AudioFormat, str] = {
    PCMU_8K: "audio/x-mulaw",
    AudioFormat(Encoding.L16, 8000): "audio/x-l16",
    AudioFormat(Encoding.L16, 16000): "audio/x-l16",
}
#: The same as the XML's ``contentType`` and the setting ``PLIVO_STREAM_CONTENT_TYPE`` spell them.
CONTENT_TYPES: Mapping[str, AudioFormat] = {f"{name};rate={wire.sample_rate}": wire for wire, name in ENCODINGS.items()}
API_BASE_URL = "https://api.plivo.com/v1"
#: What ``CallStatus`` says of a call, in webhooks and of live calls: https://docs.plivo.com/docs/voice/xml/request/call-status
STAGES: Mapping[str, Stage] = {
    "queued": "queued",
    "ringing": "ringing",
    "in-progress": "answered",
    "completed": "completed",
    "busy": "busy",
    "no-answer": "no-answer",
    "timeout": "no-answer",
    "failed": "failed",
    "cancel": "canceled",
}
#: Characters of a stream's URL: https://www.plivo.com/docs/voice/audio-streaming/overview-doc
URL_LIMIT = 2048

Version = Literal[2, 3]


class SignatureHeaders(NamedTuple):
    """Where the signatures of a version are: made with the account's own token, and with the main account's."""

    own: str
    main: str
    nonce: str


HEADERS: Mapping[Version, SignatureHeaders] = {
    3: SignatureHeaders("X-Plivo-Signature-V3", "X-Plivo-Signature-Ma-V3", "X-Plivo-Signature-V3-Nonce"),
    2: SignatureHeaders("X-Plivo-Signature-V2", "X-Plivo-Signature-Ma-V2", "X-Plivo-Signature-V2-Nonce"),
}
#: The tokens that sign, the main account's where the other is a sub-account's.
TOKEN_NAMES = ("PLIVO_AUTH_TOKEN", "PLIVO_MAIN_AUTH_TOKEN")


class PlivoCompany(Company):
    """Plivo, and the audio that is asked for."""

    name: ClassVar[str] = "plivo"
    title: ClassVar[str] = "Plivo"
    codes_page: ClassVar[str] = "https://www.plivo.com/docs/voice/troubleshooting/hangup-causes/"
    credential_names: ClassVar[tuple[str, ...]] = (
        *TOKEN_NAMES,
        "PLIVO_AUTH_ID",
        "PLIVO_API_BASE_URL",
        "PLIVO_STREAM_CONTENT_TYPE",
    )

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        if written := self.credential("PLIVO_STREAM_CONTENT_TYPE"):
            self.credentials["PLIVO_STREAM_CONTENT_TYPE"] = squeezed(written)
        self.content_type = self.setting("PLIVO_STREAM_CONTENT_TYPE", "audio/x-mulaw;rate=8000", CONTENT_TYPES)

    def can_verify(self) -> bool:
        return any(self.credential(name) for name in TOKEN_NAMES)

    def api_url(self, *path: str) -> str:
        """
        Return the address of one of the account's resources, such as ``Call`` and its id.

        https://docs.plivo.com/docs/voice/api/overview
        """
        base = (self.credential("PLIVO_API_BASE_URL") or API_BASE_URL).rstrip("/")
        parts = (base, "Account", *map(path_part, (self.credential("PLIVO_AUTH_ID"), *path)))
        return "/".join(parts) + "/"


def signed_text(version: Version, nonce: str, method: str, url: str, fields: Fields = ()) -> str:
    """
    Return what a signature covers: of version 2 the address alone, of version 3 the query and the form as well.

    A question mark is there before the fields of a form even where the URL has no query.

    https://github.com/plivo/plivo-python/blob/master/plivo/utils/signature_v3.py
    """
    address, _, written = url.partition("#")[0].partition("?")
    if version == 2:
        return address + nonce
    query = "&".join(f"{name}={value}" for name, value in sorted(parse_qsl(written, keep_blank_values=True)))
    form = sorted(fields) if method != "GET" else []
    if form and query:
        query += "."
    mark = "?" if form or query else ""
    return f"{address}{mark}{query}{''.join(name + value for name, value in form)}.{nonce}"
