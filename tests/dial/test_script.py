"""Whole conversations in virtual time: the script against bots that are functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.signals import tone
from wsvoice.audio import write_wav
from wsvoice.dial.playback import Playback
from wsvoice.dial.script import Clip, Keys, Script, Turn, load_turns
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.errors import AudioFileError, UsageError

RATE = 8000
#: Called with the step's time, the caller's audio and the digits of 20 ms; returns what it says.
Bot = Callable[[float, bytes, str], bytes]


class Conversation:
    """A conversation that has been held."""

    def __init__(self, turns: list[Turn], bot: Bot, *, listen_s: float = 1.0, timeout_s: float = 10.0) -> None:
        detector, playback = SoundDetector(RATE), Playback(RATE, 0.0, limit_s=600.0)
        self.script = Script(turns, detector, sample_rate=RATE, listen_s=listen_s, response_timeout_s=timeout_s)
        self.said = bytearray()
        self.pressed: list[tuple[float, str]] = []
        self.notes: list[tuple[float, str]] = []
        self.now_ms = 0.0
        while not self.script.done:
            self.now_ms += 20
            assert self.now_ms < 200_000, "the conversation does not end"
            playback.advance(self.now_ms / 1000)
            detector.feed(playback.take_heard())
            step = self.script.step(self.now_ms, audible_queued=playback.audible_ms > 0)
            self.said += step.pcm + bytes(320 - len(step.pcm))
            self.pressed += [(self.now_ms, digit) for digit in step.digits]
            self.notes += [(self.now_ms, kind) for kind, _ in step.notes]
            if words := bot(self.now_ms, bytes(self.said[-320:]), step.digits):
                playback.add_audio(words, self.now_ms / 1000)
        detector.flush()
        self.turns = self.script.turns()


def clip(ms: float, before_ms: float = 0, after_ms: float = 0) -> Clip:
    def silence(ms: float) -> bytes:
        return bytes(2 * round(ms * 8))

    return Clip("clip", silence(before_ms) + tone(500, ms, RATE) + silence(after_ms), RATE)


def silent_bot(now_ms: float, pcm: bytes, digits: str) -> bytes:
    return b""


def echo_bot(now_ms: float, pcm: bytes, digits: str) -> bytes:
    return pcm


def answers(delay_ms: float, words: bytes) -> Bot:
    """A bot that says `words` once the caller has been silent for `delay_ms`."""
    state = {"spoke": False, "quiet_ms": 0.0}

    def bot(now_ms: float, pcm: bytes, digits: str) -> bytes:
        if any(pcm) or digits:
            state.update(spoke=True, quiet_ms=0.0)
            return b""
        state["quiet_ms"] += 20
        if state["spoke"] and state["quiet_ms"] >= delay_ms:
            state["spoke"] = False
            return words
        return b""

    return bot


def test_a_bot_that_says_nothing_first_is_spoken_to_after_a_second() -> None:
    held = Conversation([clip(500)], echo_bot)
    (turn,) = held.turns
    assert turn.caller_start_ms == pytest.approx(1000, abs=2)
    assert turn.caller_end_ms == pytest.approx(1500, abs=2)
    assert held.script.failure is None


def test_the_caller_may_speak_at_once() -> None:
    held = Conversation([clip(500)], echo_bot, listen_s=0)
    assert held.turns[0].caller_start_ms == pytest.approx(0, abs=2)


def test_behind_an_echo_the_round_trip_is_seen() -> None:
    (turn,) = Conversation([clip(500)], echo_bot).turns
    assert turn.bot_start_ms is not None
    assert turn.bot_start_ms - turn.caller_start_ms == pytest.approx(20, abs=0.5)
    assert turn.response_ms == 0


def test_an_echo_of_words_with_a_pause_is_one_answer() -> None:
    words = Clip("words", tone(500, 300, RATE) + bytes(2 * 8 * 400) + tone(500, 300, RATE), RATE)
    (turn,) = Conversation([words], echo_bot).turns
    assert turn.caller_end_ms - turn.caller_start_ms == pytest.approx(1000, abs=2)
    assert turn.bot_start_ms == pytest.approx(turn.caller_start_ms + 20, abs=1)
    assert turn.response_ms == 0


def test_a_greeting_is_heard_out() -> None:
    def bot(now_ms: float, pcm: bytes, digits: str) -> bytes:
        greeting = tone(440, 2000, RATE) if now_ms == 500 else b""
        return greeting + echo_bot(now_ms, pcm, digits)

    (turn,) = Conversation([clip(300)], bot).turns
    assert turn.caller_start_ms == pytest.approx(500 + 2000 + 600, abs=40)


def test_a_greeting_without_an_end_is_cut_into_after_half_a_minute() -> None:
    held = Conversation([clip(300)], lambda now_ms, pcm, digits: tone(440, 20, RATE))
    assert held.turns[0].caller_start_ms == pytest.approx(30_000, abs=40)
    # It goes on for ever, so the caller does not wait for its end.
    assert (held.notes[-1][1], held.now_ms) == ("note", pytest.approx(90_300, abs=100))


def test_a_greeting_with_pauses_is_one_greeting() -> None:
    word, pause = tone(440, 500, RATE), bytes(2 * 8 * 450)

    def bot(now_ms: float, pcm: bytes, digits: str) -> bytes:
        return (word + pause) * 2 + word if now_ms == 100 else pcm

    (turn,) = Conversation([clip(300)], bot).turns
    assert turn.caller_start_ms == pytest.approx(100 + 2400 + 600, abs=40)


def test_the_response_time_counts_from_the_last_audible_sample() -> None:
    # The file ends in silence, which is not speech: the bot answers 200 ms after the words, before the file's end.
    held = Conversation([clip(500, before_ms=100, after_ms=800)], answers(200, tone(440, 300, RATE)), listen_s=0)
    (turn,) = held.turns
    assert turn.caller_start_ms == pytest.approx(100, abs=2)
    assert turn.caller_end_ms == pytest.approx(600, abs=2)
    assert turn.response_ms == pytest.approx(200, abs=25)
    assert turn.bot_start_ms == pytest.approx(800, abs=25)


def test_a_word_in_between_is_not_the_answer() -> None:
    back = answers(300, tone(440, 300, RATE))

    def bot(now_ms: float, pcm: bytes, digits: str) -> bytes:
        return (tone(300, 100, RATE) if now_ms == 200 else b"") + back(now_ms, pcm, digits)

    (turn,) = Conversation([clip(1000)], bot, listen_s=0).turns
    assert turn.bot_start_ms == pytest.approx(200, abs=2)
    assert turn.response_ms == pytest.approx(300, abs=25)


def test_turns_follow_one_another() -> None:
    held = Conversation([clip(300), clip(400)], answers(100, tone(440, 500, RATE)), listen_s=0)
    first, second = held.turns
    assert first.response_ms == pytest.approx(100, abs=25)
    assert second.response_ms == pytest.approx(100, abs=25)
    assert second.caller_start_ms == pytest.approx(300 + 100 + 500 + 600, abs=60)
    assert second.caller_end_ms - second.caller_start_ms == pytest.approx(400, abs=2)
    assert held.script.missing(bot_ended=True) is None


def test_a_bot_that_does_not_answer_ends_the_script() -> None:
    held = Conversation([clip(300), clip(300)], silent_bot, timeout_s=3)
    assert held.script.failure == "the bot did not answer turn 1 within 3 s"
    (turn,) = held.turns
    assert (turn.bot_start_ms, turn.response_ms) == (None, None)
    assert held.now_ms == pytest.approx(1000 + 300 + 3000, abs=40)


def test_digits_are_pressed_at_their_pace() -> None:
    held = Conversation([Keys("1w2#")], answers(1000, tone(440, 200, RATE)), listen_s=0)
    assert [(digit, at_ms - held.pressed[0][0]) for at_ms, digit in held.pressed] == [("1", 0), ("2", 700), ("#", 900)]
    assert held.script.digits_sent == "12#"
    assert not any(held.said)
    (turn,) = held.turns
    assert turn.caller_end_ms - turn.caller_start_ms == 900
    assert turn.response_ms == pytest.approx(1000, abs=45)


def test_a_clip_is_said_as_it_is() -> None:
    spoken = clip(333, before_ms=41, after_ms=17)
    held = Conversation([spoken], echo_bot, listen_s=0)
    assert held.said[: len(spoken.pcm)] == spoken.pcm
    assert not any(held.said[len(spoken.pcm) :])
    assert [kind for _, kind in held.notes] == ["caller-speaks", "caller-silent"]


def test_a_clip_at_another_rate_keeps_its_length() -> None:
    spoken = Clip("clip", tone(500, 400, 24_000), 24_000)
    (turn,) = Conversation([spoken], echo_bot, listen_s=0).turns
    assert turn.caller_end_ms - turn.caller_start_ms == pytest.approx(400, abs=4)


def test_a_clip_without_sound_is_a_turn_too() -> None:
    back = answers(0, b"")

    def bot(now_ms: float, pcm: bytes, digits: str) -> bytes:
        return back(now_ms, pcm, digits) + (tone(440, 100, RATE) if now_ms == 700 else b"")

    (turn,) = Conversation([Clip("nothing", bytes(2 * 8 * 400), RATE)], bot, listen_s=0).turns
    assert (turn.caller_start_ms, turn.caller_end_ms) == (0, 400)
    assert turn.response_ms == pytest.approx(300, abs=2)


# The turns that were asked for


def test_the_built_in_question_is_asked_where_nothing_is_named() -> None:
    (question,) = load_turns((), "")
    assert isinstance(question, Clip)
    assert question.sample_rate == 8000
    assert 2.0 < len(question.pcm) / 16000 < 3.0


def test_files_come_first_and_digits_last(tmp_path: Path) -> None:
    path = tmp_path / "hello.wav"
    write_wav(path, [tone(500, 100, 16_000)], 16_000)
    first, last = load_turns((path,), "1a#")
    assert first == Clip("hello.wav", tone(500, 100, 16_000), 16_000)
    assert last == Keys("1A#")


def test_digits_alone_need_no_words() -> None:
    assert load_turns((), "12") == [Keys("12")]
    assert [type(turn) for turn in load_turns((), "ww")] == [Clip]


def test_a_key_that_no_telephone_has_is_refused() -> None:
    with pytest.raises(UsageError, match="'E'"):
        load_turns((), "1e")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="does not exist"):
        load_turns((tmp_path / "none.wav",), "")


def test_the_built_in_question_has_a_name_among_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (question,) = load_turns([], "")
    assert load_turns([Path("question")], "1") == [question, Keys("1")]
    # A file of that name is the user's.
    (tmp_path / "question").write_text("no sound")
    with pytest.raises(AudioFileError, match="question cannot be read"):
        load_turns([Path("question")], "")
