"""
Text to speech by eSpeak NG, which the package espeakng-loader brings along with its voices.

https://github.com/espeak-ng/espeak-ng/blob/master/src/include/espeak-ng/speak_lib.h
"""

import asyncio
import ctypes
import threading
from collections.abc import AsyncGenerator, AsyncIterator

import espeakng_loader
from pipecat.frames.frames import Frame
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: audio is handed over, not played
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: without it, missing data ends the process
_POSITION_CHARACTER = 1
_UTF8 = 1
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_ON_AUDIO = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """
    The library, of which there is one in a process; it speaks one text at a time.

    Attributes:
        sample_rate: Of what it speaks: 22050.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._lock = threading.Lock()
        self._pcm = bytearray()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.sample_rate <= 0:
            raise RuntimeError("eSpeak NG cannot be initialized")
        # Kept, because the library keeps it as well.
        self._on_audio = _ON_AUDIO(self._take)
        self._library.espeak_SetSynthCallback(self._on_audio)

    def speak(self, text: str, *, voice: str, words_a_minute: int, pitch: int) -> bytes:
        """
        Return `text` as 16-bit samples.

        Args:
            text: What to say.
            voice: One of ``espeak-ng --voices``, such as ``en-us`` or ``en-us+f3``.
            words_a_minute: From 80 to 450.
            pitch: From 0 to 99.

        Raises:
            ValueError: If there is no such voice.
        """
        with self._lock:
            if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"eSpeak NG has no voice {voice!r}")
            self._library.espeak_SetParameter(_RATE, words_a_minute, 0)
            self._library.espeak_SetParameter(_PITCH, pitch, 0)
            self._pcm.clear()
            encoded = text.encode() + b"\0"
            self._library.espeak_Synth(
                encoded, ctypes.c_size_t(len(encoded)), 0, _POSITION_CHARACTER, 0, _UTF8, None, None
            )
            return bytes(self._pcm)

    def _take(self, samples, count: int, events) -> int:
        # No samples mark the end.
        if samples:
            self._pcm += ctypes.string_at(samples, 2 * count)
        return 0


_espeak: Espeak | None = None


def load() -> Espeak:
    """Return the library; it is loaded once."""
    global _espeak
    if _espeak is None:
        _espeak = Espeak()
    return _espeak


class EspeakTTSService(TTSService):
    """Speaks with eSpeak NG: no beauty, but at once and on any machine."""

    def __init__(self, *, voice: str = "en-us", words_a_minute: int = 160, pitch: int = 50, **options) -> None:
        super().__init__(
            push_start_frame=True,
            push_stop_frames=True,
            settings=TTSSettings(model=None, voice=voice, language=None),
            **options,
        )
        self._words_a_minute = words_a_minute
        self._pitch = pitch
        self._espeak = load()

    def can_generate_metrics(self) -> bool:
        return True

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame, None]:
        async for frame in self._stream_audio_frames_from_iterator(
            self._speak(text), in_sample_rate=self._espeak.sample_rate, context_id=context_id
        ):
            await self.stop_ttfb_metrics()
            yield frame

    async def _speak(self, text: str) -> AsyncIterator[bytes]:
        # A sentence takes some milliseconds, too long for the loop that other calls' audio runs on.
        yield await asyncio.to_thread(
            self._espeak.speak,
            text,
            voice=self._settings.voice,
            words_a_minute=self._words_a_minute,
            pitch=self._pitch,
        )
