"""Words and verdicts from services, against a server that speaks OpenAI's API; and functions as transcribers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.menu_bot import CALLER, MenuBot, serving, write_sounds
from wsvoice.config import TestConfig
from wsvoice.errors import ScenarioError, UsageError
from wsvoice.scenarios.judging import judge
from wsvoice.scenarios.loading import read_scenario
from wsvoice.scenarios.running import RunCall, make_ready, place_call
from wsvoice.scenarios.services import Judge
from wsvoice.testing import CallFactory
from wsvoice.words import ServiceError, load_transcriber


class Service(ThreadingHTTPServer):
    """Answers every transcription with the same words, and every question with `verdict`."""

    words = "We are open, from nine to FIVE."
    status = 200
    is_slow = False
    verdict = '{"holds": true, "why": "it says so"}'

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.released = threading.Event()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        service: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        service.requests.append((self.path, dict(self.headers), body))
        answer: dict[str, Any] = {"text": service.words}
        if self.path.endswith("/chat/completions"):
            answer = {"choices": [{"message": {"content": service.verdict}}]}
        content = json.dumps(answer).encode()
        if service.is_slow:
            service.released.wait(20)
        self.send_response(service.status if "Authorization" in self.headers else 401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def config(service: Service, key: str = "a-key") -> TestConfig:
    return TestConfig(transcriber=service.url, judge_url=service.url, model_key=key)


def test_words_come_from_a_service(service: Service) -> None:
    transcribe = load_transcriber(service.url, key="a-key")
    assert transcribe(CALLER, 8000, "en") == service.words
    [(path, headers, body)] = service.requests
    assert path == "/v1/audio/transcriptions"
    assert headers["Authorization"] == "Bearer a-key"
    assert b'name="model"\r\n\r\nwhisper-1' in body
    assert b"RIFF" in body
    assert CALLER in body


def test_a_service_that_refuses_is_named_without_the_key(service: Service) -> None:
    with pytest.raises(ServiceError, match="answered 401"):
        load_transcriber(service.url)(CALLER, 8000, "en")


@pytest.mark.parametrize(
    "verdict", ["yes", '{"why": "no verdict"}', "[]", '{"holds": "yes"}', '{"holds": ' + "[" * 9999 + "}"]
)
def test_a_judge_without_a_verdict_is_a_failure(service: Service, verdict: str) -> None:
    service.verdict = verdict
    with pytest.raises(ServiceError, match="no verdict"):
        Judge(service.url, "a-model", "a-key").decide("is polite", [("bot", "hello")])


def test_a_judge_that_fails_or_is_slow_gives_no_verdict(service: Service) -> None:
    service.status = 500
    with pytest.raises(ServiceError, match=r"the judge at http://127\.0\.0\.1:\d+/v1/chat/completions answered 500"):
        Judge(service.url, "a-model", "a-key").decide("is polite", [("bot", "hello")])
    service.status, service.is_slow = 200, True
    with pytest.raises(ServiceError, match=r"the judge cannot be asked: .* did not answer within 0\.2 s"):
        Judge(service.url, "a-model", "a-key", timeout_s=0.2).decide("is polite", [("bot", "hello")])


@pytest.mark.parametrize(
    ("name", "message"),
    [("whispr", "no transcriber 'whispr'"), ("no_such_module:f", "not installed"), ("json:nothing", "not installed")],
)
def test_a_transcriber_that_is_missing_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_transcriber(name)


@pytest.mark.parametrize("name", [":f", ".a:b", "a:", "a..b:c", "a:b:c", ":", "a-b:c"])
def test_a_name_that_no_function_can_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"no transcriber '{re.escape(name)}'"):
        load_transcriber(name)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("def hear(:", r"SyntaxError: .*\(bad_ears_0\.py, line 1\)"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("raise SystemExit('not today')", "SystemExit: not today"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_transcriber_that_cannot_be_imported_is_told_where_a_scenario_names_it(
    content: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_ears_0.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    write_sounds(tmp_path)
    path = tmp_path / "talk.call.toml"
    path.write_text('transcriber = "bad_ears_0:hear"\n' + TALK.format(url="http://127.0.0.1:9/"))
    with pytest.raises(ScenarioError) as told:
        make_ready(read_scenario(path), None, factory(tmp_path), TestConfig())
    assert re.fullmatch(
        rf"{re.escape(str(path))}:1: the transcriber bad_ears_0:hear cannot be imported: {why}", told.value.message
    )


def test_a_function_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match="json:loads failed: TypeError"):
        load_transcriber("json:loads")(CALLER, 8000, "en")


TALK = """
target = "{url}"
listen = 0.06
[[steps]]
audio = "caller.wav"
says = "nine to five"
not_says = ["closed", "hive"]
judge = "says when it is open"
"""


def factory(folder: Path) -> CallFactory:
    return CallFactory([folder], folder, lambda: folder / "call.wav", [])


def test_what_was_said_is_judged(service: Service, tmp_path: Path) -> None:
    write_sounds(tmp_path)
    path = tmp_path / "talk.call.toml"
    with serving(MenuBot()) as bot:
        path.write_text(TALK.format(url=bot.url))
        files = factory(tmp_path)
        ready = make_ready(read_scenario(path), None, files, config(service))
        call = place_call(ready, files)
    good = judge(ready, call)
    assert (good.failures, good.skipped) == ([], [])
    assert good.steps[0].bot_words == good.steps[0].caller_words == service.words
    question = json.loads(service.requests[-1][2])["messages"][1]["content"]
    assert "says when it is open" in question
    assert '"who": "caller"' in question

    service.verdict = '{"holds": false, "why": "it is closed"}'
    assert [each.partition(": ")[2] for each in judge(ready, saying(call, "We are closed.")).failures] == [
        'the bot did not say "nine to five"; it said "We are closed."',
        'the bot said "closed": "We are closed."',
        "the judge does not find that the bot says when it is open: it is closed",
    ]

    # One that gives no verdict is not asked again.
    n_asked, service.verdict = len(service.requests), "I would rather not say."
    path.write_text(f"{path.read_text()}[[steps]]{TALK.partition('[[steps]]')[2]}")
    judged = judge(make_ready(read_scenario(path), None, files, config(service)), replace(call, times=call.times * 2))
    assert any("the judge gave no verdict: " in each for each in judged.failures)
    assert [each.partition("' ")[2] for each in judged.skipped] == ["was not judged: the judge had failed before"]
    assert len(service.requests) == n_asked + 1

    # Without words, only what needs them fails.
    silent = replace(call, report=replace(call.report, words=(), words_failure="nobody listened"))
    judged = judge(ready, silent)
    assert judged.failures == ["words are missing: nobody listened"]
    assert {each.partition("' ")[2] for each in judged.skipped} == {"was not judged: words are missing"}
    path.write_text(TALK.partition("says")[0].format(url="http://127.0.0.1:9/"))
    judged = judge(make_ready(read_scenario(path), None, files, config(service)), silent)
    assert (judged.failures, judged.skipped) == ([], ["words are missing: nobody listened"])


def test_words_that_a_dying_transcriber_did_not_say_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying_ears.py").write_text("import asyncio\ndef hear(*_):\n    raise asyncio.CancelledError('gone')\n")
    monkeypatch.syspath_prepend(tmp_path)
    write_sounds(tmp_path)
    path = tmp_path / "talk.call.toml"
    steps = '[[steps]]\naudio = "caller.wav"\nnot_says = "closed"\n'
    with serving(MenuBot()) as bot:
        path.write_text(f'target = "{bot.url}"\ntranscriber = "dying_ears:hear"\nlisten = 0.06\n{steps}')
        files = factory(tmp_path)
        ready = make_ready(read_scenario(path), None, files, TestConfig())
        call = place_call(ready, files)
    assert judge(ready, call).failures == [
        "words are missing: the transcriber dying_ears:hear failed: CancelledError: gone"
    ]


def saying(call: RunCall, text: str) -> RunCall:
    return replace(call, report=replace(call.report, words=[replace(each, text=text) for each in call.report.words]))


def test_without_a_key_the_judge_is_left_out_and_words_need_a_transcriber(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    path = tmp_path / "talk.call.toml"
    path.write_text(TALK.format(url="http://127.0.0.1:9/"))
    with pytest.raises(ScenarioError, match=r"talk.call.toml:6: `says` needs a transcriber"):
        make_ready(read_scenario(path), None, factory(tmp_path), TestConfig())
    with serving(MenuBot()) as bot:
        said = [line for line in TALK.format(url=bot.url).splitlines() if "says =" not in line]
        path.write_text("\n".join(line for line in said if "not_says" not in line))
        files = factory(tmp_path)
        ready = make_ready(read_scenario(path), None, files, TestConfig())
        judged = judge(ready, place_call(ready, files))
    assert judged.passed
    [skipped] = judged.skipped
    assert skipped.endswith("judge = 'says when it is open' was not judged: OPENAI_API_KEY is not set")
