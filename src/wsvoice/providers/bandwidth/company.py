"""Bandwidth's facts for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import AnsweredBy, Stage
from wsvoice.providers.base import Company
from wsvoice.providers.fields import shown

#: What a bot may send, by our setting's words; the caller is always PCMU.
#: https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/startStream/
#: https://github.com/Bandwidth/pipecat-bandwidth/blob/main/src/pipecat_bandwidth/serializer.py
CODECS = {"PCMU": PCMU_8K} | {f"PCM@{rate}": AudioFormat(Encoding.L16, rate) for rate in (8000, 16000, 24000)}
#: How many ``<StreamParam>`` a stream takes, and characters of a name and of a value.
#: https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/startStream/#streamparam-attributes
PARAMETER_COUNT, NAME_LIMIT, VALUE_LIMIT = 12, 256, 2048
#: Bytes of a document: https://dev.bandwidth.com/docs/voice/bxml
DOCUMENT_LIMIT = 64 * 1024
#: Names the stream in all verbs; no other of the call may have its name while it lasts.
STREAM_NAME = "wsvoice"

#: Where calls are, and where a token for them is got.
VOICE_BASE_URL, TOKEN_BASE_URL = "https://voice.bandwidth.com", "https://api.bandwidth.com"
VOICE_PATH, TOKEN_PATH = "/api/v2/accounts/", "/api/v1/oauth2/token"
#: How a call ended, by the cause that is told: https://dev.bandwidth.com/docs/voice/webhooks/disconnect
#: All others are failures.
ENDS: Mapping[str, Stage] = {
    "hangup": "completed",
    "busy": "busy",
    "rejected": "busy",
    "timeout": "no-answer",
    "cancel": "canceled",
}
#: Who answered, by the result of machine detection; it may also have found nothing out.
#: https://dev.bandwidth.com/docs/voice/webhooks/machineDetectionComplete
RESULTS: Mapping[str, AnsweredBy] = {
    "human": "human",
    "answering-machine": "machine",
    "tone-detected": "machine",
    "silence": "unknown",
    "timeout": "unknown",
    "error": "unknown",
}
#: The tag of a call whose machine detection waits for the end of the greeting: a result does not say which it is of.
GREETING_TAG = "greeting-end"


class BandwidthCompany(Company):
    """Bandwidth's facts. A password comes with a webhook, and no signature: https://dev.bandwidth.com/docs/voice/webhooks"""

    name: ClassVar[str] = "bandwidth"
    title: ClassVar[str] = "Bandwidth"
    codes_page: ClassVar[str] = "https://dev.bandwidth.com/docs/voice/errors"
    credential_names: ClassVar[tuple[str, ...]] = (
        "BANDWIDTH_WEBHOOK_PASSWORD",
        "BANDWIDTH_WEBHOOK_USERNAME",
        "BANDWIDTH_ACCOUNT_ID",
        "BANDWIDTH_CLIENT_ID",
        "BANDWIDTH_CLIENT_SECRET",
        "BANDWIDTH_APPLICATION_ID",
        "BANDWIDTH_OUTBOUND_CODEC",
        "BANDWIDTH_API_BASE_URL",
    )
    covers_body: ClassVar[bool] = False
    has_marks: ClassVar[bool] = False

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self.outbound_format = CODECS[self.setting("BANDWIDTH_OUTBOUND_CODEC", "PCMU", CODECS)]

    def webhook_password(self) -> dict[str, str]:
        """Return what our server asks webhooks for, as documents and requests name it; nothing if it asks for none."""
        password = self.credential("BANDWIDTH_WEBHOOK_PASSWORD")
        user = self.credential("BANDWIDTH_WEBHOOK_USERNAME") or "wsvoice"
        return {"username": user, "password": password} if password else {}


def parameter_fault(parameters: Mapping[str, str]) -> str:
    """Say why Bandwidth takes no such parameters; nothing if it does."""
    if len(parameters) > PARAMETER_COUNT:
        return f"a stream has {len(parameters)} parameters; Bandwidth takes {PARAMETER_COUNT}"
    for name, value in parameters.items():
        if not 0 < len(name) <= NAME_LIMIT or len(value) > VALUE_LIMIT:
            limits = f"{NAME_LIMIT} characters of a name and {VALUE_LIMIT} of a value"
            return f"the parameter {shown(name)} is too long, or has no name; Bandwidth takes {limits}"
    return ""
