"""
Reading what an answer, a document or a request, says about a stream's audio.
"""

from __future__ import annotations

from collections.abc import Callable

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.providers.base import Quirk
from wsvoice.providers.fields import broken, read_counter, shown
from wsvoice.providers.telnyx.company import FOREIGN_CODECS, SAMPLE_RATES, SettingNames, TelnyxCompany
from wsvoice.providers.xml_answer import Reading

LEG_CODEC = Quirk(
    "PCMU", "the codec of the call's leg, which is streamed where the answer names none", ("PCMU", "PCMA")
)


def read_formats(
    company: TelnyxCompany, get: Callable[[str], str], names: SettingNames, reading: Reading
) -> tuple[AudioFormat, AudioFormat]:
    """
    Return the formats of the caller's audio and of the bot's.

    Args:
        company: Tells the byte order.
        get: Returns a setting of the answer; empty if it is not there.
        names: What the settings are called.
        reading: Where it is noted what Telnyx would do to the audio.

    Raises:
        RemoteProtocolError: Of kind ``unsupported-codec``.
    """
    track = get(names.track) or "inbound_track"
    if track == "both_tracks":
        reading.found("warn", f"{names.track} is both_tracks, so the bot hears itself as well", "W4")
    elif track != "inbound_track":
        reading.found("fail", f"{names.track} is {shown(track)}, so the bot does not hear the caller", "W4")
    mode = get(names.mode)
    if mode != "rtp":
        what = f"{names.mode} is {shown(mode)}" if mode else f"there is no {names.mode}"
        text = f'takes what the bot sends for MP3 files, and plays nothing: set {names.mode} to "rtp"'
        reading.found("fail", f"{what}: Telnyx {text}", "W4")
    return _read_inbound(company, get(names.codec), names, reading), _read_outbound(company, get, names, reading)


def _read_inbound(company: TelnyxCompany, codec: str, names: SettingNames, reading: Reading) -> AudioFormat:
    if codec in tuple(Encoding):
        return company.audio_format(Encoding(codec), SAMPLE_RATES[Encoding(codec)][0])
    if codec in ("", "default"):
        what = f"{names.codec} is default" if codec else f"there is no {names.codec}"
        text = 'A-law in most of Europe and in India; set it to "PCMU"'
        reading.found("warn", f"{what}: Telnyx sends the codec of the call's leg, {text}", "W4")
    elif codec in FOREIGN_CODECS:
        text = "Telnyx turns nothing but PCMU and PCMA into each other, and sends the codec of the call's leg"
        reading.found("warn", f"{names.codec} is {codec}: {text}", "W4")
    else:
        reading.found("fail", f"{names.codec} is {shown(codec)}, which Telnyx does not know", "W4")
    return AudioFormat(Encoding(reading.quirks.get("leg-codec") or LEG_CODEC.default))


def _read_outbound(
    company: TelnyxCompany, get: Callable[[str], str], names: SettingNames, reading: Reading
) -> AudioFormat:
    codec, written = get(names.outbound_codec) or "PCMU", get(names.outbound_rate)
    if codec not in tuple(Encoding):
        why = "which a test call cannot play" if codec in FOREIGN_CODECS else "which Telnyx does not know"
        raise broken("unsupported-codec", f"{names.outbound_codec} is {shown(codec)}, {why}; set it to PCMU")
    rates, rate = SAMPLE_RATES[Encoding(codec)], read_counter(written or "8000")
    if rate not in rates:
        allowed = ", ".join(map(str, sorted(rates)))
        reading.found("fail", f"{names.outbound_rate} is {shown(written)}, but {codec} goes with {allowed}", "W4")
        rate = rates[0]
    elif codec == Encoding.L16 and not written:
        text = "Telnyx takes the bot's audio for 8000 Hz"
        reading.found("warn", f"there is no {names.outbound_rate} for L16: {text}", "W4")
    return company.audio_format(Encoding(codec), rate)
