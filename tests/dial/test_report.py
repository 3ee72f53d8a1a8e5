"""The report, as programs and people read it."""

from __future__ import annotations

import json

from wsvoice.dial.report import MAX_FINDINGS, CallReport, CountedFinding, Findings, TurnReport

REPORT = CallReport(
    provider="twilio",
    target="http://localhost:7860/",
    verdict="passed",
    call_id="CA1",
    stream_id="MZ1",
    webhook_ms=3.14159,
    connect_ms=4.0,
    first_audio_ms=61.04,
    turns=[TurnReport(0.0, 1520.0, 1580.0, 60.0), TurnReport(3000.0, 4000.0)],
    sent_audio_ms=3000,
    received_audio_ms=2980,
    max_gap_ms=21.0,
    marks=1,
    ended_by="caller",
    close_code=1000,
    duration_ms=4100.0,
    findings=[CountedFinding("M1", "warn", "odd", 2)],
)


def test_the_names_their_order_and_their_types_are_stable() -> None:
    assert json.loads(REPORT.to_json()) == REPORT.to_dict()
    assert REPORT.to_json() == (
        '{"provider": "twilio", "target": "http://localhost:7860/", "verdict": "passed", "failure": null, '
        '"call_id": "CA1", "stream_id": "MZ1", "webhook_ms": 3.1, "connect_ms": 4.0, "first_audio_ms": 61.0, '
        '"turns": [{"caller_start_ms": 0.0, "caller_end_ms": 1520.0, "bot_start_ms": 1580.0, "response_ms": 60.0}, '
        '{"caller_start_ms": 3000.0, "caller_end_ms": 4000.0, "bot_start_ms": null, "response_ms": null}], '
        '"sent_audio_ms": 3000, "received_audio_ms": 2980, "underruns": 0, "max_gap_ms": 21.0, "marks": 1, '
        '"clears": 0, "digits_sent": "", "ended_by": "caller", "close_code": 1000, "duration_ms": 4100.0, '
        '"findings": [{"id": "M1", "level": "warn", "message": "odd", "count": 2}], "recording": null, "causes": [], '
        '"untested": [], "bot_digits": [], "transferred_to": null, "trace": null, "words": [], "words_failure": null}'
    )


def test_a_call_that_never_was_has_a_report() -> None:
    report = CallReport("twilio", "x", failure="nothing listens").to_dict()
    assert report["verdict"] == "failed"
    assert report["failure"] == "nothing listens"
    assert [name for name, value in report.items() if value is None] == [
        "webhook_ms",
        "connect_ms",
        "first_audio_ms",
        "ended_by",
        "close_code",
        "recording",
        "transferred_to",
        "trace",
        "words_failure",
    ]


def test_the_words_say_what_matters_and_end_in_the_verdict() -> None:
    assert REPORT.to_lines() == [
        "turn 1: caller 0 to 1520 ms, bot answered after 60 ms",
        "turn 2: caller 3000 to 4000 ms, no answer",
        "call: 4.1 s, heard 3.0 s of audio in all, 1 mark, 0 clears, 0 underruns, ended by the caller (1000)",
        "warn M1: odd (2 times)",
        "passed",
    ]
    echo = CallReport("twilio", "x", "passed", turns=[TurnReport(0.0, 1520.0, 60.0, 0.0)])
    assert echo.to_lines()[0] == "turn 1: caller 0 to 1520 ms, bot answered while the caller spoke"
    assert CallReport("twilio", "x", failure="nothing listens").to_lines() == ["failed: nothing listens"]


def test_findings_of_a_kind_are_counted() -> None:
    findings = Findings()
    assert findings.first_failure() is None
    assert findings.add("M1", "warn", "a")
    assert findings.add("M1", "fail", "at 3", kind="bad")
    assert not findings.add("M1", "fail", "at 7", kind="bad")
    assert [findings.add("M2", "fail", "b") for _ in range(3)] == [True, False, False]
    assert findings.all() == (
        CountedFinding("M1", "warn", "a"),
        CountedFinding("M1", "fail", "at 3", 2),
        CountedFinding("M2", "fail", "b", 3),
    )
    assert findings.first_failure() == CountedFinding("M1", "fail", "at 3", 2)


def test_kinds_of_findings_have_a_limit() -> None:
    findings = Findings()
    for number in range(MAX_FINDINGS + 50):
        findings.add("M1", "warn", f"{number} " + "x" * 1000)
    found = findings.all()
    assert len(found) == MAX_FINDINGS + 1
    assert found[-1].count == 50
    assert all(len(each.message) < 510 for each in found)
