"""Calls the bot, as its provider would: presses keys, and listens to what the menu says."""

import wave
from pathlib import Path

import pytest

PROVIDERS = ["twilio"]
PROMPTS = Path(__file__).parents[1] / "prompts"
RATE = 8000  # the telephone's, and the prompts'


def samples(name):
    """Return the samples of a prompt."""
    with wave.open(str(PROMPTS / f"{name}.wav")) as file:
        return file.readframes(file.getnframes())


def begun(report, name):
    """Return when the first half second of a prompt was heard, each time it was: where it begins, in milliseconds."""
    return report.find(samples(name)[:RATE])


def ended(report, name):
    """Return when the last half second of a prompt was heard, which shows that nothing interrupted it."""
    return report.find(samples(name)[-RATE:])


def write(path, pcm):
    """Write samples as a WAV file, and return its path."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(pcm)
    return path


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_key_has_its_answer(dial, provider):
    # A `w` waits for half a second: a 1 that is soon followed by a 9, a 2 that is heard to its end, a star, a hash.
    report = dial("bot.py", provider=provider, dtmf="1w9wwwww2wwwwwww*ww#")

    report.assert_passed()
    assert report.ended_by == "bot"
    [welcome], [hours] = begun(report, "welcome"), begun(report, "hours")
    [wrong], [address], [goodbye] = ended(report, "wrong"), ended(report, "address"), ended(report, "goodbye")
    assert welcome < hours < wrong < address < goodbye
    # The next key cut the opening hours off.
    assert ended(report, "hours") == []
    # The menu is spoken first, behind each answer, and for the star.
    first, *_, last = menus = begun(report, "menu")
    assert welcome < first < hours
    assert address < last < goodbye
    assert [at for at in menus if wrong < at < address]


def test_a_voice_interrupts_the_menu(dial, tmp_path):
    # Somebody who speaks, pauses for a good second, and speaks again.
    words = samples("address")
    voice = write(tmp_path / "voice.wav", words + bytes(2 * RATE * 5 // 4) + words)
    report = dial("bot.py", provider=PROVIDERS[0], audio=[voice], dtmf="#")

    report.assert_passed()
    # The pause is taken for the end. Once the caller goes on, the bot is silent, and begins again after that.
    interrupted, again = begun(report, "keys")
    [end], [goodbye] = ended(report, "keys"), ended(report, "goodbye")
    assert interrupted < again < end < goodbye


def test_a_caller_who_does_nothing_is_reminded_and_then_hung_up_on(dial, tmp_path):
    silence = write(tmp_path / "silence.wav", bytes(2 * RATE))
    report = dial("bot.py", provider=PROVIDERS[0], audio=[silence], duration_s=60, env={"IVR_WAIT_S": "1"})

    report.assert_passed()
    assert report.ended_by == "bot"
    reminders, [goodbye] = ended(report, "waiting"), ended(report, "goodbye")
    assert len(reminders) == 2
    assert len(ended(report, "menu")) == 3
    assert reminders[-1] < goodbye
