"""Text to speech."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from wsvoice import speech
from wsvoice.config import DialConfig, resolve_dial
from wsvoice.dial.caller import dial
from wsvoice.dial.script import Clip, Keys, load_turns
from wsvoice.dial.sound_detection import audible_range
from wsvoice.errors import ConfigError, UsageError
from wsvoice.speech import speak

RATE = 22050


def sounding_s(pcm: bytes, rate: int) -> float:
    first, last = audible_range(pcm, rate) or (0, 0)
    return (last - first) / rate


def test_a_text_is_spoken() -> None:
    pcm, rate = speak("Hello, can you hear me?")
    assert rate == RATE
    assert 0.8 < sounding_s(pcm, rate) < 2.5
    rms = np.sqrt(np.mean(np.frombuffer(pcm, "<i2").astype(float) ** 2))
    assert -30 < 20 * np.log10(rms / 32768) < -12
    # As loud as it is, nothing is cut off.
    assert np.abs(np.frombuffer(pcm, "<i2").astype(int)).max() < 32767


def test_more_words_take_longer() -> None:
    one, two = (sounding_s(*speak(text)) for text in ("Good morning.", "Good morning, good morning, good morning."))
    assert two > 2 * one


def test_a_text_is_spoken_once_and_remembered() -> None:
    assert speak("Say it again.") is speak("Say it again.")


def test_voices_differ() -> None:
    texts = {speak("Die Rechnung, bitte.", voice)[0] for voice in ("de", "en-us", "en-us+f3")}
    assert len(texts) == 3


def test_letters_of_other_scripts_are_spoken() -> None:
    assert sounding_s(*speak("Привет, ты меня слышишь?", "ru")) > 0.8


def test_a_zero_does_not_cut_the_text_off() -> None:
    cut, whole = (sounding_s(*speak(text)) for text in ("Good morning", "Good morning\0and good evening"))
    assert whole > 1.5 * cut


@pytest.mark.parametrize("text", ["", "   ", "..."])
def test_a_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="nothing to say"):
        speak(text)


def test_a_voice_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no voice 'klingon2'") as caught:
        speak("Hello.", "klingon2")
    assert "en-us" in (caught.value.hint or "")
    # And the next one is heard.
    assert sounding_s(*speak("Hello after that.")) > 0.3


def test_threads_take_turns() -> None:
    texts = [f"Number {number}." for number in ("one", "two", "three", "four")] * 3
    alone = [sounding_s(*speak.__wrapped__(text)) for text in texts]
    together: dict[int, float] = {}

    def say(number: int) -> None:
        together[number] = sounding_s(*speak.__wrapped__(texts[number]))

    threads = [threading.Thread(target=say, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Said again, a text comes out a few samples longer or shorter.
    assert [together[number] for number in range(len(texts))] == pytest.approx(alone, abs=0.1)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    speech._load.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    try:
        with pytest.raises(UsageError, match="not installed") as caught:
            speak("Nobody has said this yet.")
        assert caught.value.hint == "pip install 'wsvoice[say]'"
    finally:
        speech._load.cache_clear()


def test_voices_in_a_folder_with_a_long_path_are_found(tmp_path: Path) -> None:
    # The library has room for 160 bytes. In a process of its own, for it reads its voices once.
    import espeakng_loader

    folder = tmp_path / ("a" * 90) / ("b" * 90) / "espeakng_loader"
    shutil.copytree(Path(espeakng_loader.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(folder.parent)!r})\n"
        "import espeakng_loader\n"
        f"assert espeakng_loader.__file__.startswith({str(folder)!r})\n"
        "from wsvoice.speech import speak\n"
        "print(len(speak('Hello.')[0]), len(speak('Hola.', 'es')[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(int(length) > RATE // 4 for length in done.stdout.split())


def test_missing_voices_are_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    program = (
        "import espeakng_loader\n"
        f"espeakng_loader.get_data_path = lambda: {str(tmp_path)!r}\n"
        "from wsvoice.errors import UsageError\n"
        "from wsvoice.speech import speak\n"
        "try:\n"
        "    speak('Hello.')\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"eSpeak NG finds no voices in {tmp_path}\n"), done.stderr


# -- As what the caller says --


def test_texts_are_said_between_the_audio_and_the_keys(tmp_path: Path) -> None:
    spoken = Clip('"Hello."', *speak("Hello."))
    assert load_turns([], "1#", [spoken]) == [spoken, Keys("1#")]
    assert load_turns([], "", [spoken]) == [spoken]


def test_a_caller_that_is_a_bot_has_no_texts() -> None:
    with pytest.raises(UsageError, match="says what it likes"):
        asyncio.run(dial(DialConfig(target="http://127.0.0.1:9/", caller="caller.py", say=("Hello.",))))


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"say": ["Yes, please.", "No."]}, ("Yes, please.", "No.")),
        ({"say": "Yes, please."}, ("Yes, please.",)),
        ({}, ()),
    ],
)
def test_a_comma_does_not_end_a_text(given: dict[str, object], texts: tuple[str, ...], tmp_path: Path) -> None:
    assert resolve_dial(given, environ={}, cwd=tmp_path).config.say == texts


def test_texts_in_the_environment_and_the_projects_settings(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice.dial]\nsay = ["Hola.", "Adiós."]\nvoice = "es"\n', "utf-8")
    config = resolve_dial({}, environ={}, cwd=tmp_path).config
    assert (config.say, config.voice) == (("Hola.", "Adiós."), "es")
    config = resolve_dial({}, environ={"WSVOICE_DIAL_SAY": "Well, hello."}, cwd=tmp_path).config
    assert config.say == ("Well, hello.",)


@pytest.mark.parametrize("given", ["", " ", ["Hello.", ""], 5])
def test_what_is_no_text_is_refused(given: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--say"):
        resolve_dial({"say": given}, environ={}, cwd=tmp_path)
