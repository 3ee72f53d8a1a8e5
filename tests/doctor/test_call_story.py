"""Why a call had no audio, told from what its provider and wsvoice recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor.company import CREDENTIALS, SmallAccount, SmallCompany, small_company
from tests.signals import tone
from wsvoice.audio import write_wav
from wsvoice.doctor.call_story import CallStory, recordings_of, shown_time, tell
from wsvoice.errors import ApiError, AudioFileError

CALL = "CA" + "0" * 32
COMPLETED = {"stage": "completed", "duration_s": 12.0, "from_number": "+15550100001", "to_number": "+15550100002"}
TONE = tone(440, 1000, 8000)
SILENCE = bytes(16000)


@pytest.fixture
def company() -> Iterator[SmallCompany]:
    with small_company() as each:
        each.calls[CALL] = dict(COMPLETED)
        yield each


def told(company: SmallCompany, recordings: Path | None = None) -> CallStory:
    account = SmallAccount({**CREDENTIALS, "TWILIO_API_BASE_URL": company.url})
    return asyncio.run(tell(account, CALL, recordings))


def test_a_call_of_which_nothing_went_wrong(company: SmallCompany) -> None:
    company.evidence[CALL] = [{"what": "the webhook was answered 200", "when": "2026-11-22T10:02:10Z"}]
    story = told(company)
    assert story.why == []
    assert story.state is not None
    assert story.state.duration_s == 12.0
    assert [each.what for each in story.evidence] == ["the webhook was answered 200"]


def test_what_failed_first_comes_first_and_each_once(company: SmallCompany) -> None:
    company.evidence[CALL] = [
        {"what": "asked the webhook", "when": "2026-11-22T10:02:10Z"},
        {"what": "the webhook answered 403", "when": "2026-11-22T10:02:11Z", "code": "11200", "failed": True},
        {"what": "the webhook answered 403", "when": "2026-11-22T10:02:11Z", "code": "11200", "failed": True},
        {"what": "hung up", "when": "2026-11-22T10:02:12Z", "code": "99999", "failed": True, "hint": "see there"},
    ]
    assert told(company).why == [
        (
            "10:02:11: Twilio 11200: the webhook answered 403 (the webhook gave no usable answer)",
            "look at the server's log",
        ),
        ("10:02:12: Twilio 99999: hung up", "see there"),
    ]


def test_an_unknown_code_leads_to_the_companys_page(company: SmallCompany) -> None:
    company.evidence[CALL] = [{"what": "failed", "code": "77777", "failed": True}]
    assert told(company).why == [("Twilio 77777: failed", "https://www.twilio.com/docs/api/errors/77777")]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"stage": "busy"}, "nobody spoke: the line was busy"),
        ({"stage": "no-answer", "cause": "SIP 480"}, "nobody spoke: the call was not answered in time (SIP 480)"),
        ({"stage": "failed"}, "nobody spoke: the provider could not connect the call"),
        ({"stage": "completed", "duration_s": 0.3}, "the call was over after 0.3 s"),
        ({"stage": "ringing"}, "the call is not over yet: ringing"),
    ],
)
def test_what_the_end_alone_explains(company: SmallCompany, state: dict[str, object], why: str) -> None:
    company.calls[CALL] = state
    [(message, _)] = told(company).why
    assert message.startswith(why)


def test_evidence_goes_before_the_end(company: SmallCompany) -> None:
    company.calls[CALL] = {"stage": "completed", "duration_s": 0.0}
    company.evidence[CALL] = [{"what": "no upgrade", "code": "31920", "failed": True}]
    [(message, hint)] = told(company).why
    assert message.startswith("Twilio 31920: no upgrade")
    assert hint == "let the proxy pass upgrades on"


@pytest.mark.parametrize(
    ("caller", "bot", "why"),
    [
        (TONE, SILENCE, "the bot was never heard in 1.0 s, and the caller was"),
        (SILENCE, TONE, "the caller was never heard in 1.0 s, and the bot was"),
        (SILENCE, SILENCE, "neither the caller nor the bot was heard in 1.0 s"),
        (TONE, TONE, ""),
    ],
)
def test_what_a_recording_holds(company: SmallCompany, tmp_path: Path, caller: bytes, bot: bytes, why: str) -> None:
    file = tmp_path / f"20261122-100210-twilio-{CALL}.wav"
    write_wav(file, [caller, bot], 8000)
    write_wav(tmp_path / f"20261122-100210-twilio-CA{'1' * 32}.wav", [SILENCE, SILENCE], 8000)
    story = told(company, tmp_path)
    [heard] = story.recordings
    assert heard.file == str(file)
    assert (heard.caller_s, heard.bot_s) == (0.0 if caller is TONE else None, 0.0 if bot is TONE else None)
    assert [message.startswith(why) for message, _ in story.why] == ([True] if why else [])


def test_a_recording_that_cannot_be_read(company: SmallCompany, tmp_path: Path) -> None:
    (tmp_path / f"x-twilio-{CALL}.wav").write_bytes(b"no sound")
    with pytest.raises(AudioFileError, match="cannot be read"):
        told(company, tmp_path)


def test_no_folder_of_recordings(tmp_path: Path) -> None:
    assert recordings_of(None, CALL) == []
    assert recordings_of(tmp_path / "nothing", CALL) == []


def test_a_call_that_is_not_the_accounts(company: SmallCompany) -> None:
    company.calls.clear()
    with pytest.raises(ApiError, match="the account has no call"):
        told(company)


@pytest.mark.parametrize(
    ("when", "shown"),
    [
        ("2026-11-22T10:02:11.250Z", "10:02:11"),
        ("Sun, 22 Nov 2026 10:02:11 +0000", "10:02:11"),
        ("yesterday", "yesterday"),
        ("", ""),
    ],
)
def test_the_time_of_day(when: str, shown: str) -> None:
    assert shown_time(when) == shown
