"""Calls the bot, as its telephone company would: presses keys, and listens to what the menu says."""

import wave
from pathlib import Path

import numpy as np
import pytest

PROVIDERS = ["twilio"]
RATE = 8000  # the telephone's, and the prompts'


def prompt(name):
    """Return the samples of a prompt."""
    with wave.open(str(Path(__file__).parents[1] / "prompts" / f"{name}.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)


def beginning(name):
    """Return the first half second of a prompt."""
    return prompt(name)[: RATE // 2]


def places(report, sound):
    """Return where in the call a sound was heard, each time it was, in seconds."""
    heard = np.frombuffer(report.heard, "<i2").astype(float)
    # The call may be over a moment before the silence at the end of its last prompt is.
    heard = np.concatenate([heard, np.zeros(max(len(sound) - len(heard), RATE // 10))])
    size = 1 << (len(heard) + len(sound)).bit_length()
    products = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sound, size)), size)
    energy = np.cumsum(np.concatenate([[0.0], heard**2]))
    energy = np.maximum(energy[len(sound) :] - energy[: -len(sound)], 1.0)
    likeness = products[: len(energy)] / np.sqrt(energy * np.sum(sound**2))
    found = np.flatnonzero(likeness > 0.9)
    # Neighbouring samples are one and the same place.
    return [float(at) / RATE for at in found[np.diff(found, prepend=-RATE) > RATE // 10]]


def place(report, sound):
    """Return where in the call a sound was heard, which has to be once."""
    found = places(report, sound)
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def voice(tmp_path):
    """Somebody who speaks, pauses for a good second, and speaks again."""
    path = tmp_path / "voice.wav"
    words, pause = prompt("address"), np.zeros(RATE * 5 // 4)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.concatenate([words, pause, words]).astype("<i2").tobytes())
    return path


@pytest.fixture
def silence(tmp_path):
    """A caller who says nothing while two reminders are spoken, and for three seconds more."""
    path = tmp_path / "silence.wav"
    pauses = RATE // 2
    reminder = len(prompt("waiting")) + len(prompt("menu")) + len(prompt("more")) + pauses
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(bytes(2 * (2 * reminder + 3 * RATE)))
    return path


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_key_has_its_answer(dial, provider):
    # A `w` waits for half a second: a 1 that is soon followed by a 9, a 2 that is heard to its end, a star, a hash.
    report = dial("bot.py", provider=provider, dtmf="1w9wwwww2wwwwwww*ww#")

    assert report.verdict == "passed", report.failure
    assert report.digits_sent == "192*#"
    assert report.ended_by == "bot"
    welcome, hours = place(report, prompt("welcome")), place(report, beginning("hours"))
    wrong, address = place(report, prompt("wrong")), place(report, prompt("address"))
    goodbye = place(report, prompt("goodbye"))
    assert welcome < hours < wrong < address < goodbye
    # The next key cut the opening hours off.
    assert places(report, prompt("hours")) == []
    # The menu is spoken first, behind each answer, and for the star.
    first, *_, last = menus = places(report, beginning("menu"))
    assert welcome < first < hours
    assert address < last < goodbye
    assert [at for at in menus if wrong < at < address]


def test_a_voice_interrupts_the_menu(dial, voice):
    report = dial("bot.py", provider=PROVIDERS[0], audio=[voice], dtmf="#")

    assert report.verdict == "passed", report.failure
    # Asked for keys once the caller pauses, which is cut off when the caller goes on, and again after that.
    interrupted, whole = places(report, beginning("keys"))
    assert places(report, prompt("keys")) == [pytest.approx(whole, abs=0.01)]
    assert interrupted < whole < place(report, prompt("goodbye"))


def test_a_caller_who_does_nothing_is_reminded_and_then_hung_up_on(dial, silence, monkeypatch):
    monkeypatch.setenv("IVR_WAIT_S", "1")
    report = dial("bot.py", provider=PROVIDERS[0], audio=[silence])

    assert report.verdict == "passed", report.failure
    assert report.ended_by == "bot"
    reminders = places(report, prompt("waiting"))
    assert len(reminders) == 2
    assert len(places(report, prompt("menu"))) == 3
    assert reminders[-1] < place(report, prompt("goodbye"))
