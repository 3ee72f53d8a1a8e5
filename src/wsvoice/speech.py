"""
Text to speech with eSpeak NG, whose library and voices are in the package ``espeakng-loader``.

It needs no key and no network. It sounds like a machine, but is understood.

The library's interface: https://github.com/espeak-ng/espeak-ng/blob/1.52.0/src/include/espeak-ng/speak_lib.h
"""

from __future__ import annotations

import ctypes
import re
import tempfile
import threading
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from wsvoice.errors import UsageError

_SYNCHRONOUS = 2  # of espeak_AUDIO_OUTPUT: sound is handed over, and all of it before espeak_Synth returns
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: without it, missing data ends the process
_OK = 0  # EE_OK of espeak_ERROR
_CHARACTERS = 1  # POS_CHARACTER of espeak_POSITION_TYPE
_UTF8 = 1  # espeakCHARS_UTF8
# t_espeak_callback: 16-bit samples (none at the end), how many, and events.
_TAKE_AUDIO = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
# The first of a language file's names is its own.
_LANGUAGE = re.compile(r"^language\s+([\w-]+)", re.MULTILINE)
# A path has room for 160 bytes, N_PATH_HOME_DEF, in which it is put together with the names of files:
# https://github.com/espeak-ng/espeak-ng/blob/1.52.0/src/libespeak-ng/speech.h
_PATH_LIMIT = 120

_RECORD = "record the words, and give the WAV file with --audio"


@lru_cache(maxsize=64)
def speak(text: str, voice: str = "en-us") -> tuple[bytes, int]:
    """
    Return `text` as 16-bit little-endian samples, and their rate in samples a second.

    Within a process, the samples of a text are always the same; between processes they may differ a little.

    Args:
        text: What to say.
        voice: A language or voice of eSpeak NG, such as ``en-us``, ``es`` or ``de+f3``.

    Raises:
        UsageError: If eSpeak NG is not installed, there is no such voice, or nothing in `text` can be said.
    """
    pcm, sample_rate = _espeak().speak(text, voice)
    if not any(pcm):
        raise UsageError(f"there is nothing to say in {text[:100]!r}", hint="write words")
    return pcm, sample_rate


def languages() -> list[str]:
    """Return the languages that :func:`speak` takes; raise :exc:`UsageError` if eSpeak NG is not installed."""
    _, data = _find()
    files = [path for path in Path(data, "lang").rglob("*") if path.is_file()]
    texts = [path.read_text("utf-8", "replace") for path in files]
    return sorted({found[1] for text in texts if (found := _LANGUAGE.search(text))})


class _Espeak:
    """The library, loaded once in a process; it says one text at a time."""

    def __init__(self) -> None:
        library, data = _find()
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise UsageError(f"eSpeak NG cannot be loaded: {error}", hint=_RECORD) from None
        # Kept as long as the library, which reads a language when it is first spoken.
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if len(data.encode()) > _PATH_LIMIT:
            self._folder = tempfile.TemporaryDirectory(prefix="espeak-", ignore_cleanup_errors=True)
            # Without symbolic links, the long path has to do.
            with suppress(OSError):
                link = Path(self._folder.name, "data")
                link.symlink_to(data, target_is_directory=True)
                data = str(link)
        self._sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT)
        if self._sample_rate <= 0:
            raise UsageError(
                f"eSpeak NG finds no voices in {data}", hint="pip install --force-reinstall espeakng-loader"
            )
        self._lock = threading.Lock()
        self._pcm = bytearray()
        # Kept, because the library does not keep it alive.
        self._callback = _TAKE_AUDIO(self._take)

    def speak(self, text: str, voice: str) -> tuple[bytes, int]:
        library = self._library
        with self._lock:
            if library.espeak_SetVoiceByName(voice.encode()) != _OK:
                raise UsageError(
                    f"eSpeak NG has no voice {voice!r}",
                    hint="give a language such as en-us, en-gb, de, es or fr-fr, or a voice such as en-us+f3",
                )
            # Each time, because other code in this process may have set its own.
            library.espeak_SetSynthCallback(self._callback)
            self._pcm.clear()
            # It reads as far as the first zero.
            encoded = text.replace("\0", " ").encode("utf-8", "replace") + b"\0"
            size = ctypes.c_size_t(len(encoded))
            result = library.espeak_Synth(encoded, size, 0, _CHARACTERS, 0, _UTF8, None, None)
            if result != _OK:
                raise UsageError(f"eSpeak NG cannot say {text[:100]!r} (error {result})", hint=_RECORD)
            return bytes(self._pcm), self._sample_rate

    def _take(self, samples: int | None, count: int, events: Any) -> int:
        if samples:
            self._pcm += ctypes.string_at(samples, 2 * count)
        return 0


_LOADING = threading.Lock()


def _espeak() -> _Espeak:
    with _LOADING:
        return _load()


@cache
def _load() -> _Espeak:
    return _Espeak()


def _find() -> tuple[str, str]:
    """Return the paths of the library and of its data."""
    try:
        import espeakng_loader
    except ImportError:
        raise UsageError(
            "to say a text, wsvoice needs eSpeak NG, which is not installed", hint="pip install 'wsvoice[say]'"
        ) from None
    try:
        return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    except RuntimeError as error:
        raise UsageError(f"espeakng-loader is incomplete: {error}", hint=_RECORD) from None
