"""What a caller hears who is turned away (``--busy-message``): the provider's speech, or a file that is served here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from wsvoice.errors import ConfigError
from wsvoice.providers.base import BusyMessage

if TYPE_CHECKING:
    from wsvoice.config import RunConfig
    from wsvoice.providers.base import Server

#: What every provider plays is a WAV file of 16-bit samples with one channel at the telephone's own rate:
#: https://www.twilio.com/docs/voice/twiml/play#supported-audio-file-types
#: https://developer.vonage.com/en/voice/voice-api/ncco-reference#stream
#: https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/playAudio
#: https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/play
#: https://www.plivo.com/docs/voice/xml/play
SAMPLE_RATE = 8000
#: The longest file: a caller pays for listening, and its owner too.
MAX_SOUND_S = 60
#: How long a provider may keep the file, in seconds. Its address changes with its content.
CACHE_S = 3600


@dataclass(frozen=True, slots=True)
class BusySound:
    """
    A sound as it is served.

    Attributes:
        name: Of its address. It is made of the content, so that all processes of a server, and a server that was
            restarted, have the same; and nobody can guess it who has not got the file.
        wav: The file.
    """

    name: str
    wav: bytes

    @classmethod
    def read(cls, path: Path) -> BusySound:
        """
        Read a file, and convert it to what providers play.

        Raises:
            AudioFileError: If there is no sound in it.
            ConfigError: If it is too long.
        """
        # Loads numpy, which a server without such a file may do without.
        from wsvoice.audio import read_audio, resample, write_wav

        pcm, rate = read_audio(path)
        if len(pcm) > 2 * rate * MAX_SOUND_S:
            seconds = len(pcm) / 2 / rate
            raise ConfigError(
                f"--busy-message {path} lasts {seconds:.0f} s; {MAX_SOUND_S} s are allowed",
                hint="cut it: callers pay for the time",
            )
        file = BytesIO()
        write_wav(file, [resample(pcm, rate, SAMPLE_RATE)], SAMPLE_RATE)
        wav = file.getvalue()
        return cls(f"{hashlib.sha256(wav).hexdigest()[:32]}.wav", wav)


class BusyMessages:
    """
    The message of a server.

    Raises:
        AudioFileError, ConfigError: If its file cannot be used.
    """

    def __init__(self, config: RunConfig) -> None:
        self._text = config.busy_message if isinstance(config.busy_message, str) else ""
        self._sound = BusySound.read(config.busy_message) if isinstance(config.busy_message, Path) else None

    def message(self, config: RunConfig, prefix: str) -> BusyMessage | None:
        """
        Return what providers are told to say or play; ``None`` if it is their own "busy".

        Args:
            config: With the public address as it is now.
            prefix: What stands before the server's routes where they are part of another application's.
        """
        if self._text:
            return BusyMessage(text=self._text)
        if self._sound is None or config.public_url is None:
            return None
        return BusyMessage(sound_url=f"{config.public_url}{prefix}/busy/{self._sound.name}")

    def routes(self) -> list[BaseRoute]:
        """Return the route of the sound, which anybody may fetch who knows its address: providers have no key."""
        sound = self._sound
        if sound is None:
            return []

        async def send(_: Request) -> Response:
            return Response(sound.wav, media_type="audio/wav", headers={"Cache-Control": f"max-age={CACHE_S}"})

        return [Route(f"/busy/{sound.name}", send, methods=["GET", "HEAD"])]

    def warnings(self, config: RunConfig, providers: Iterable[Server]) -> Iterator[str]:
        """Say which callers will not hear the message, and why."""
        if not self._text and self._sound is None:
            return
        # A tunnel is open by now, and has named it.
        if self._sound is not None and config.public_url is None:
            yield (
                f"--busy-message {config.busy_message} cannot be fetched without a public address (-x, --tunnel): "
                'callers hear the provider\'s own "busy"'
            )
            return
        for each in providers:
            if each.no_busy_message:
                yield f"--busy-message is not for {each.title}: {each.no_busy_message}"
