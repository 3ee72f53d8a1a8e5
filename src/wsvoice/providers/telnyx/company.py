"""What both halves of Telnyx know: its settings, its audio, and the keys that sign its webhooks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.errors import ConfigError
from wsvoice.providers.base import Company
from wsvoice.providers.fields import read_signature

SIGNATURE_HEADER = "telnyx-signature-ed25519"
TIMESTAMP_HEADER = "telnyx-timestamp"
#: The rates at which each encoding is streamed; Telnyx documents 16 kHz for L16, its libraries name more.
#: https://github.com/team-telnyx/telnyx-python/blob/master/src/telnyx/types/stream_bidirectional_sampling_rate.py
SAMPLE_RATES = {
    Encoding.PCMU: (8000,),
    Encoding.PCMA: (8000,),
    Encoding.L16: (16000, 8000, 22050, 24000, 48000),
}
#: What Telnyx can stream and we cannot read.
FOREIGN_CODECS = ("G722", "OPUS", "AMR-WB")


class SettingNames(NamedTuple):
    """What an answer calls the settings of a stream."""

    track: str
    codec: str
    mode: str
    outbound_codec: str
    outbound_rate: str


#: https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/stream
TEXML_NAMES = SettingNames("track", "codec", "bidirectionalMode", "bidirectionalCodec", "bidirectionalSamplingRate")
#: https://developers.telnyx.com/api-reference/call-commands/answer-call
API_NAMES = SettingNames(
    "stream_track",
    "stream_codec",
    "stream_bidirectional_mode",
    "stream_bidirectional_codec",
    "stream_bidirectional_sampling_rate",
)


class TelnyxCompany(Company):
    """
    Telnyx, with credentials by environment variable name.

    ==========================  =================================================================================
    ``TELNYX_PUBLIC_KEY``       verifies webhooks; base64, from the portal under *Keys & Credentials*
    ``TELNYX_API_KEY``          answers and ends Call Control calls; TeXML needs none
    ``TELNYX_BASE_URL``         another address of the API, with its version, as in Telnyx's own libraries
    ``TELNYX_PRIVATE_KEY``      not Telnyx's but ours: base64 of the 32-byte seed that test calls are signed with
    ``TELNYX_STREAM_CODEC``     ours: the audio to ask for, both ways: ``PCMU`` (default), ``PCMA`` or ``L16``
    ``TELNYX_L16_BYTE_ORDER``   ours: ``little`` (default) or ``big``; Telnyx does not document it
    ==========================  =================================================================================

    Raises:
        ConfigError: If the codec or the byte order is none of these.
    """

    name: ClassVar[str] = "telnyx"
    title: ClassVar[str] = "Telnyx"
    codes_page: ClassVar[str] = "https://developers.telnyx.com/development/api-fundamentals/api-errors"
    credential_names: ClassVar[tuple[str, ...]] = (
        "TELNYX_PUBLIC_KEY",
        "TELNYX_PRIVATE_KEY",
        "TELNYX_API_KEY",
        "TELNYX_BASE_URL",
        "TELNYX_STREAM_CODEC",
        "TELNYX_L16_BYTE_ORDER",
    )

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        # RTP is big-endian, but Telnyx's own demo is reported to be little-endian, and most bridges in use are:
        # https://github.com/team-telnyx/realtime-ai-demo
        self.big_endian = self.setting("TELNYX_L16_BYTE_ORDER", "little", ("little", "big")) == "big"
        codec = Encoding(self.setting("TELNYX_STREAM_CODEC", "PCMU", Encoding))
        #: The audio that is asked for, both ways.
        self.format = self.audio_format(codec, SAMPLE_RATES[codec][0])

    def audio_format(self, encoding: Encoding, sample_rate: int) -> AudioFormat:
        """Return a format in the byte order that is set."""
        return AudioFormat(encoding, sample_rate, encoding is Encoding.L16 and self.big_endian)

    def stream_settings(self, names: SettingNames) -> dict[str, Any]:
        """
        Return the settings of a two-way stream of :attr:`format`.

        Everything with a harmful default is written out: without a codec Telnyx sends that of the call's leg, and
        without the mode it takes what we send for MP3 files.
        """
        codec = self.format.encoding.value
        return dict(zip(names, ("inbound_track", codec, "rtp", codec, self.format.sample_rate), strict=True))

    def can_verify(self) -> bool:
        return bool(self.credential("TELNYX_PUBLIC_KEY") or self.credential("TELNYX_PRIVATE_KEY"))

    def private_key(self) -> Ed25519PrivateKey | None:
        """Return the key that signs test calls; ``None`` if it is not known."""
        written = self.credential("TELNYX_PRIVATE_KEY")
        return Ed25519PrivateKey.from_private_bytes(read_key("TELNYX_PRIVATE_KEY", written)) if written else None


def read_key(name: str, written: str) -> bytes:
    """
    Return the bytes of the key that the credential `name` holds.

    Raises:
        ConfigError: If it is no key.
    """
    key = read_signature(written.strip())
    if len(key) != 32:
        raise ConfigError(
            f"{name} is not a key: it must be the base64 of 32 bytes",
            hint="it has 44 characters, the last of which is =; copy it whole",
        )
    return key


def stable_uuid(what: str, call_id: str) -> str:
    """Return an id that is always the same for the same call."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"telnyx:{what}:{call_id}"))
