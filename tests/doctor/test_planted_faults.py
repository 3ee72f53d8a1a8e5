"""
Faults, planted one at a time into a set-up that works: each is found by the check that it belongs to, and named with
what mends it.

Servers, proxies and the company's API are real ones on loopback; names and addresses are an internet of the tests' own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.doctor.company import CREDENTIALS, NUMBER
from tests.doctor.conftest import Practice, echo, port_of
from tests.doctor.internet import HOST, Authority, answering, free_port, response
from wsvoice.config import RunConfig
from wsvoice.doctor.bot import look_at_bot
from wsvoice.doctor.checkup import Examined, Result, warn
from wsvoice.doctor.subject import Subject
from wsvoice.http import SERVER_HEADER
from wsvoice.phone.numbers import PointedRecord
from wsvoice.providers.account import ServerAddresses

ECHO = Path(__file__).parents[2] / "examples" / "echo.py"


def found(examined: Sequence[Examined]) -> dict[str, str]:
    """Return what is wrong, in all words, by the check that says so."""
    return {
        each.name: "\n".join(f"{result.message} | {result.hint}" for result in each.results if result.level != "ok")
        for each in examined
        if each.level in ("warn", "fail")
    }


def only(examined: Sequence[Examined], name: str) -> str:
    """Return what the check `name` says, which has to be the only one that finds something, each with its mend."""
    wrong = found(examined)
    assert list(wrong) == [name], wrong
    faults = [fault for each in examined for fault in each.results if fault.level in ("warn", "fail")]
    assert all(fault.hint for fault in faults), faults
    return wrong[name]


def test_a_healthy_set_up_is_found_healthy(practice: Practice) -> None:
    examined = practice.examine(bot=str(ECHO), with_call=True, also=("packages", "pipecat"))
    assert found(examined) == {}
    passed = {each.name for each in examined if each.level == "ok"}
    assert passed == {each.name for each in examined} - {"tunnel"}


# This machine


def test_another_virtual_environment_is_active(practice: Practice, tmp_path: Path) -> None:
    practice.environ["VIRTUAL_ENV"] = str(tmp_path / "venv")
    said = only(practice.examine(), "python")
    assert f"{tmp_path}/venv is active, and wsvoice runs in {sys.prefix}" in said
    assert "-m pip install wsvoice" in said


def plant_package(folder: Path, name: str, version: str) -> None:
    """Install a package that shadows one of the same name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_package_is_too_old(practice: Practice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_package(tmp_path, "websockets", "12.0")
    monkeypatch.syspath_prepend(tmp_path)
    said = only(practice.examine(also=["packages"]), "packages")
    assert "websockets 12.0 is installed, and" in said
    assert "wsvoice needs websockets>=" in said
    assert 'pip install "websockets' in said


def test_a_package_of_nearly_the_same_name_is_installed(
    practice: Practice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_package(tmp_path, "pipecat", "0.1")
    monkeypatch.syspath_prepend(tmp_path)
    said = only(practice.examine(also=["packages"]), "packages")
    assert "the package pipecat is installed" in said
    assert "pip uninstall pipecat" in said
    assert "--force-reinstall pipecat-ai" in said


def test_a_pipecat_that_nobody_has_tested(practice: Practice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_package(tmp_path, "pipecat-ai", "1.99.0")
    monkeypatch.syspath_prepend(tmp_path)
    said = only(practice.examine(also=["pipecat"]), "pipecat")
    assert "wsvoice was not tested with pipecat 1.99.0" in said
    assert "tested is pipecat 1." in said


def test_few_open_files(practice: Practice) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    try:
        said = only(practice.examine(), "limits")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "400 open files" in said
    assert "ulimit -n" in said


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processors")
def test_a_single_processor(practice: Practice) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        said = only(practice.examine(), "limits")
    finally:
        os.sched_setaffinity(0, before)
    assert "1 processor:" in said
    assert "give it two" in said


# Tunnels


def test_a_tunnel_without_its_token(practice: Practice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = tmp_path / "ngrok"
    agent.touch()
    practice.environ["PYNGROK_NGROK_PATH"] = str(agent)
    monkeypatch.setattr("pyngrok.conf.DEFAULT_NGROK_CONFIG_PATH", tmp_path / "ngrok.yml")
    practice.change(proxy=None, tunnel="ngrok")
    said = only(practice.examine(), "tunnel")
    assert "ngrok's token is neither in NGROK_AUTHTOKEN nor" in said
    assert "set NGROK_AUTHTOKEN" in said
    practice.environ["NGROK_AUTHTOKEN"] = "token"
    assert found(practice.examine(only=["tunnel"])) == {}


def test_a_tunnel_whose_program_is_missing(practice: Practice) -> None:
    practice.change(proxy=None, tunnel="no-such-tunnel --port {port}")
    said = only(practice.examine(), "tunnel")
    assert "the program no-such-tunnel is not on this machine | install no-such-tunnel" in said


# The account


def test_wrong_credentials(practice: Practice) -> None:
    practice.company.takes = False
    said = only(practice.examine(), "twilio account")
    assert "Twilio does not take the credentials (401) | copy both from the console again" in said


def test_an_api_that_cannot_be_reached(practice: Practice) -> None:
    practice.change(
        credentials={**practice.config.credentials, "TWILIO_API_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    )
    said = only(practice.examine(), "twilio account")
    assert "cannot be reached" in said
    assert "check this machine's network" in said


def test_credentials_are_missing(practice: Practice) -> None:
    practice.change(credentials={"TWILIO_AUTH_TOKEN": CREDENTIALS["TWILIO_AUTH_TOKEN"]})
    said = only(practice.examine(), "twilio account")
    assert "Twilio's API needs TWILIO_ACCOUNT_SID | set it in the environment or in .env" in said


def test_a_trial_account(practice: Practice) -> None:
    practice.company.account |= {"trial": True, "limits": ["calls end after 10 minutes"]}
    said = only(practice.examine(), "twilio account")
    assert "it is a trial account | upgrade it at Twilio" in said
    assert "limit of the trial account: calls end after 10 minutes" in said


def test_the_secret_that_signs_is_not_set(practice: Practice) -> None:
    practice.change(credentials={}, verify="auto")
    said = found(practice.examine(only=["twilio account"]))["twilio account"]
    assert "Twilio's webhooks are checked, and TWILIO_AUTH_TOKEN is not set | it is" in said


# Numbers


def test_a_number_of_somebody_elses(practice: Practice) -> None:
    practice.company.numbers.clear()
    said = only(practice.examine(), "twilio number")
    assert f"the account has no number {NUMBER} | it has" in said


def test_a_number_without_voice(practice: Practice) -> None:
    practice.company.numbers[NUMBER]["has_voice"] = False
    said = only(practice.examine(), "twilio number")
    assert f"{NUMBER} takes no calls: it is a number without voice | get one with voice" in said


def test_a_number_that_goes_nowhere(practice: Practice) -> None:
    practice.company.numbers[NUMBER]["points_at"] = ""
    said = only(practice.examine(), "twilio number")
    assert f"calls to {NUMBER} go nowhere | enter https://{practice.front.host}/ at" in said
    assert f"--number {NUMBER}" in said


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ("https://old.ngrok.app/", "it is another host"),
        ("http://{host}/", "it begins with http://, which is not encrypted"),
        (f"https://{HOST}/", "the port differs"),
        ("https://{host}/telnyx", "the path differs"),
    ],
)
def test_a_number_that_goes_elsewhere(practice: Practice, there: str, why: str) -> None:
    written = there.format(host=practice.front.host)
    practice.company.numbers[NUMBER]["points_at"] = written
    said = only(practice.examine(), "twilio number")
    assert f"go to {written}, and not to https://{practice.front.host}/: {why} | enter" in said


@pytest.mark.parametrize("path", ["", "/", "/twilio", "/twilio/"])
def test_a_number_that_comes_here_by_any_path_of_ours(practice: Practice, path: str) -> None:
    practice.company.numbers[NUMBER]["points_at"] = f"https://{practice.front.host}{path}"
    assert found(practice.examine(only=["twilio number"])) == {}


def test_a_number_that_cannot_be_pointed(practice: Practice) -> None:
    practice.company.numbers[NUMBER] |= {"obstacle": "it belongs to the trunk TK1", "hint": "take it off the trunk"}
    said = only(practice.examine(), "twilio number")
    assert "cannot be pointed here: it belongs to the trunk TK1 | take it off the trunk" in said


def test_a_number_that_a_dead_run_has_left(practice: Practice) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = Path(practice.environ["WSVOICE_STATE_DIR"], "numbers")
    folder.mkdir(parents=True)
    here = ServerAddresses(f"https://{practice.front.host}/")
    left = PointedRecord("twilio", "AC1", "+15550107777", {}, here, was="https://old.example.com/", pid=gone.pid)
    (folder / "twilio-15550107777.json").write_text(left.to_json())
    said = only(practice.examine(), "left numbers")
    assert f"+15550107777 at Twilio still points at a run that is gone, process {gone.pid}" in said
    assert "it rang at https://old.example.com/" in said
    assert "`wsvoice number restore +15550107777`" in said


# The clock


@pytest.mark.parametrize(("ahead_s", "level"), [(600, "fail"), (-600, "fail"), (60, "warn")])
def test_a_clock_that_is_wrong(practice: Practice, ahead_s: int, level: str) -> None:
    practice.company.ahead_s = ahead_s
    examined = practice.examine()
    said = only(examined, "clock")
    told = re.search(rf"this machine's clock is (\d+) s {'behind' if ahead_s > 0 else 'ahead'}", said)
    # A busy machine takes its time between the company's clock and its own.
    assert told
    assert int(told[1]) == pytest.approx(abs(ahead_s), abs=5)
    assert "timedatectl" in said
    assert next(each.level for each in examined if each.name == "clock") == level


# The server on this machine


def test_another_program_has_the_port(practice: Practice) -> None:
    with answering(lambda head, body: response("200 OK", b"hello")) as port:
        practice.change(port=port)
        said = found(practice.examine())["server"]
    assert f"another program has port {port}" in said
    assert f"--port {port + 1}" in said


def test_a_server_that_is_blocked(practice: Practice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsvoice.doctor.subject.LOCAL_TIMEOUT_S", 0.3)
    # The system takes connections, and nobody answers them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        practice.change(port=port)
        said = found(practice.examine())["server"]
    assert "does not answer" in said
    assert "blocks its event loop" in said


def test_a_server_for_another_provider(practice: Practice) -> None:
    other = practice.start(echo, transport="plivo")
    practice.change(port=port_of(other.url), proxy=None)
    said = only(practice.examine(), "server")
    assert f"the server at {other.url} serves plivo, and not twilio | start it with -t twilio" in said


def test_a_server_for_plain_clients(practice: Practice) -> None:
    other = practice.start(echo, transport="websocket")
    practice.change(port=port_of(other.url), proxy=None)
    said = only(practice.examine(), "server")
    assert f"the server at {other.url} serves plain clients, no telephone calls | start it with -t" in said
    practice.change(transport="websocket")
    practice.number = ""
    assert found(practice.examine(with_call=True)) == {}


def test_a_server_that_drains(practice: Practice) -> None:
    other = practice.start(echo, transport="twilio", credentials=CREDENTIALS)
    other.switchboard.drain()
    practice.change(port=port_of(other.url), proxy=None)
    said = only(practice.examine(), "server")
    assert "is draining: it takes no new calls | start it again" in said


# The public address


def test_a_name_that_nobody_knows(practice: Practice) -> None:
    practice.network = replace(practice.network, names={})
    said = only(practice.examine(), "public name")
    assert f"the name {HOST} has no address: Name or service not known | check how it is spelt" in said


def test_a_name_of_a_private_address(practice: Practice) -> None:
    practice.network = replace(practice.network, names={HOST: ["192.168.1.7"]})
    said = only(practice.examine(), "public name")
    assert f"{HOST} is 192.168.1.7 here, which the internet does not reach | look whether" in said


def issue_expired(practice: Practice, folder: Path) -> Path:
    return practice.authority.issue(HOST, days=(-30, -2))


def issue_for_another_name(practice: Practice, folder: Path) -> Path:
    return practice.authority.issue("www.example.com")


def issue_self_signed(practice: Practice, folder: Path) -> Path:
    return practice.authority.issue(HOST, signs_itself=True)


def issue_by_a_stranger(practice: Practice, folder: Path) -> Path:
    return Authority(folder, "stranger").issue(HOST)


def issue_for_a_few_days(practice: Practice, folder: Path) -> Path:
    return practice.authority.issue(HOST, days=(-80, 3))


@pytest.mark.parametrize(
    ("issue", "fault", "mend"),
    [
        (issue_expired, "has expired", "renew it"),
        (issue_for_another_name, "is for other names", "get one for this name"),
        (issue_self_signed, "is self-signed", "public authority"),
        (issue_by_a_stranger, "unknown authority, or without the intermediate certificates", "fullchain.pem"),
        (issue_for_a_few_days, "expires in 3 days", "not renewed"),
    ],
)
def test_a_certificate_that_is_not_taken(
    practice: Practice, tmp_path: Path, issue: Callable[[Practice, Path], Path], fault: str, mend: str
) -> None:
    practice.front.show(issue(practice, tmp_path))
    said = only(practice.examine(), "certificate")
    assert f"the certificate of {HOST} " in said
    assert fault in said
    assert mend in said


def test_no_tls_at_the_public_address(practice: Practice) -> None:
    with answering(lambda head, body: response("400 Bad Request")) as port:
        move(practice, port)
        said = only(practice.examine(), "certificate")
    assert f"{HOST}:{port} speaks plain HTTP, and providers stream over TLS only | put a proxy" in said


def test_nothing_listens_at_the_public_address(practice: Practice) -> None:
    move(practice, free_port())
    said = only(practice.examine(), "certificate")
    assert "cannot be connected to: nothing listens there | is the proxy or the tunnel running?" in said


def move(practice: Practice, port: int) -> None:
    """Give the public host another port, in all places that name it, and leave the server on this machine out."""
    host = f"{HOST}:{port}"
    practice.change(proxy=host, port=free_port())
    practice.company.numbers[NUMBER]["points_at"] = f"https://{host}/"


def page(title: str) -> bytes:
    return f"<!doctype html><html><head><title>{title}</title></head><body></body></html>".encode()


@pytest.mark.parametrize(
    ("answer", "fault", "mend"),
    [
        (
            response("308 Permanent Redirect", location=f"https://www.{HOST}/healthz"),
            f"redirects to https://www.{HOST}/healthz",
            f"use -x www.{HOST}",
        ),
        (
            response("502 Bad Gateway", page("502 Bad Gateway"), server="nginx", content_type="text/html"),
            "answers 502 by nginx ('502 Bad Gateway'): it does not reach the bot's server",
            "start `wsvoice run`",
        ),
        (
            response("404 Not Found", page("ngrok"), ngrok_error_code="ERR_NGROK_3200"),
            "answers 404, and it is not the bot: ngrok-error-code ERR_NGROK_3200",
            "https://ngrok.com/docs/errors/err_ngrok_3200",
        ),
        (
            response("511 Network Authentication Required", page("Tunnel Password"), content_type="text/html"),
            "answers 511 ('Tunnel Password'): it asks visitors for a password or a click",
            "switch that off",
        ),
        (
            response("200 OK", page("Welcome to nginx!"), server="nginx", content_type="text/html"),
            "answers 200 by nginx with a web page ('Welcome to nginx!')",
            "let the name lead to the bot's server",
        ),
        (
            response("200 OK", b'{"status": "fine"}', content_type="application/json"),
            "that is no server of wsvoice's",
            "let the name lead to the port of `wsvoice run`",
        ),
    ],
    ids=["redirect", "no-backend", "tunnel-is-down", "page-for-visitors", "welcome-page", "another-server"],
)
def test_somebody_else_answers_at_the_public_address(practice: Practice, answer: bytes, fault: str, mend: str) -> None:
    practice.front.answer = lambda head: answer
    said = only(practice.examine(), "public address")
    assert fault in said
    assert mend in said


def test_the_public_address_leads_to_another_server_of_wsvoices(practice: Practice) -> None:
    other = practice.start(echo, transport="twilio", credentials=CREDENTIALS)
    practice.front.backend = port_of(other.url)
    said = only(practice.examine(), "public address")
    assert f"{practice.front.host} leads to another server of wsvoice's than the one at {practice.server.url}" in said
    assert f"lead to port {port_of(practice.server.url)}" in said


def test_a_server_among_several_instances_is_found(practice: Practice) -> None:
    other = practice.start(echo, transport="twilio", credentials=CREDENTIALS)
    ports = itertools.cycle([port_of(other.url), port_of(other.url), port_of(practice.server.url)])

    def switch(head: str) -> str:
        practice.front.backend = next(ports)
        return head

    practice.front.edit = switch
    assert found(practice.examine(only=["public address"])) == {}


def test_a_proxy_that_speaks_http_2_only(practice: Practice) -> None:
    # What such a server says first, which is no answer of HTTP/1.1: an empty SETTINGS frame.
    # https://www.rfc-editor.org/rfc/rfc9113#section-3.4
    practice.front.answer = lambda head: b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    practice.front.tls.set_alpn_protocols(["h2"])
    said = only(practice.examine(), "public address")
    assert f"{HOST} speaks HTTP/2 only" in said
    assert "let the proxy take HTTP/1.1 too" in said


# WebSockets


def without_upgrade(head: str) -> str:
    """Leave out what a proxy must not pass on, as one does that knows nothing of WebSockets."""
    lines = [line for line in head.split("\r\n") if not line.lower().startswith(("upgrade:", "connection:"))]
    return "\r\n".join(lines)


def test_a_proxy_that_drops_upgrades(practice: Practice) -> None:
    practice.front.edit = without_upgrade
    said = only(practice.examine(), "upgrade")
    assert f"{practice.front.host} does not pass on WebSockets' upgrades: it answers 404" in said
    assert "proxy_set_header Upgrade $http_upgrade" in said


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (response("400 Bad Request"), "does not pass on WebSockets' upgrades: it answers 400"),
        (response("426 Upgrade Required"), "does not pass on WebSockets' upgrades: it answers 426"),
        (response("502 Bad Gateway"), "answers WebSockets' upgrades with 502"),
        (response("200 OK", page("Home")), "answers a WebSocket's upgrade with 200 ('Home')"),
        (response("403 Forbidden", b"blocked by a firewall"), "with 403 ('blocked by a firewall'), and not the bot's"),
        (b"", "WebSockets do not come through: "),
    ],
    ids=["400", "426", "502", "page", "firewall", "closed"],
)
def test_upgrades_that_somebody_else_answers(practice: Practice, answer: bytes, fault: str) -> None:
    practice.front.answer = lambda head: answer if "upgrade: websocket" in head.lower() else None
    said = only(practice.examine(), "upgrade")
    assert fault in said
    assert said.partition(" | ")[2]


def test_streams_that_need_no_token(practice: Practice) -> None:
    open_to_all = practice.start(
        echo, transport="twilio", proxy=practice.front.host, credentials=CREDENTIALS, stream_auth="none"
    )
    practice.front.backend = port_of(open_to_all.url)
    practice.change(port=port_of(open_to_all.url))
    said = only(practice.examine(), "upgrade")
    assert "one without a token was accepted | whoever finds the address can talk to the bot" in said


# The webhook


def test_a_secret_that_differs_from_the_servers(practice: Practice) -> None:
    practice.change(credentials={**practice.config.credentials, "TWILIO_AUTH_TOKEN": "f" * 32})
    said = only(practice.examine(), "twilio webhook")
    assert "the webhook refused the call: 403 (compare TWILIO_AUTH_TOKEN" in said


def test_a_server_that_does_not_know_its_public_address(practice: Practice) -> None:
    local = practice.start(echo, transport="twilio", credentials=CREDENTIALS)
    practice.front.backend = port_of(local.url)
    practice.change(port=port_of(local.url))
    said = only(practice.examine(), "twilio webhook")
    public = f"https://{practice.front.host}/"
    assert f"Twilio signs {public}, and the server checks it for http://" in said
    assert f"-x {practice.front.host}" in said


def test_a_server_behind_a_proxy_that_hides_https(practice: Practice, tmp_path: Path) -> None:
    """A server that is not ours, and checks the signature for the URL that it sees itself."""
    from wsvoice.errors import SignatureError
    from wsvoice.providers import load_server
    from wsvoice.providers.base import WebhookRequest

    twilio = load_server("twilio", CREDENTIALS)

    def answer(head: str, body: bytes) -> bytes:
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if path == "/healthz":
            said = response("200 OK", b'{"status": "ok"}')
            return said.replace(b"\r\n", f"\r\n{SERVER_HEADER}: one\r\n".encode(), 1)
        if path.startswith("/ws/"):
            return response("403 Forbidden", b"The stream token or signature is missing or wrong.")
        try:
            twilio.verify(WebhookRequest(method, f"http://{headers['host']}{path}", headers, body), now=0)
        except SignatureError:
            return response("403 Forbidden")
        return response("200 OK", b"<Response/>", content_type="application/xml")

    with answering(answer) as port:
        practice.front.backend = port
        practice.change(port=free_port())
        said = only(practice.examine(), "twilio webhook")
    host = practice.front.host
    assert f"Twilio signs https://{host}/, and the server checks it for http://{host}/" in said


DOCUMENTS = {
    "page": (page("Log in"), "it is a web page ('Log in')"),
    "not-xml": (b"hello", "the webhook's answer cannot be used"),
    "says": (
        b"<Response><Say>Hello</Say></Response>",
        "opens no stream: the answer holds <Say>, but no <Connect>",
    ),
    "not-encrypted": (
        b'<Response><Connect><Stream url="ws://HOST/ws/twilio/1"/></Connect></Response>',
        "ws://",
    ),
    "elsewhere": (
        b'<Response><Connect><Stream url="wss://old.ngrok.app/ws/twilio/1"/></Connect></Response>',
        "the answer names a stream at old.ngrok.app, and the public address is",
    ),
    "one-way": (b'<Response><Start><Stream url="wss://HOST/ws/twilio/1"/></Start></Response>', ""),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_answer_that_opens_no_stream_here(practice: Practice, name: str) -> None:
    document, fault = DOCUMENTS[name]
    written = document.replace(b"HOST", practice.front.host.encode())
    answer = response("200 OK", written, content_type="application/xml")
    practice.front.answer = lambda head: answer if head.startswith("POST / ") else None
    said = only(practice.examine(), "twilio webhook")
    assert fault in said


def test_a_webhook_that_fails(practice: Practice) -> None:
    answer = response("500 Internal Server Error", b"Traceback: no such table")
    practice.front.answer = lambda head: answer if head.startswith("POST / ") else None
    said = only(practice.examine(), "twilio webhook")
    assert "the webhook failed: 500, Traceback: no such table | see the server's log" in said


def test_a_webhook_that_is_redirected(practice: Practice) -> None:
    moved = response("307 Temporary Redirect", location="/twilio")
    practice.front.answer = lambda head: moved if head.startswith("POST / ") else None
    said = only(practice.examine(), "twilio webhook")
    assert f"the webhook is redirected to https://{practice.front.host}/twilio | enter that address at Twilio" in said


# The bot


#: By its fault: a bot's source, what is said of it, and what mends it.
BOTS = {
    "missing-package": (
        "import acme_speech\n\nasync def bot(runner_args): ...\n",
        "bot.py imports `acme_speech`, which is not installed",
        "pip install acme_speech",
    ),
    "plain-function": (
        "def bot(runner_args): ...\n",
        "`bot` in bot.py is a plain function, not a coroutine function",
        "async def bot(runner_args): ...",
    ),
    "hangs": (
        "import time\n\ntime.sleep(600)\n\nasync def bot(runner_args): ...\n",
        "does not load within 1 s: it hangs in bot.py, line 3",
        'under `if __name__ == "__main__":`',
    ),
    "exits": (
        "import os\n\nprint('no key', flush=True)\nos._exit(3)\n",
        "the process of bot.py ended while it loaded: no key",
        "`wsvoice run bot.py` shows all",
    ),
}


@pytest.fixture(scope="module")
def bots_that_do_not_load(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    """What is found of each of :data:`BOTS`; all at the same time, because one of them takes until it is given up."""

    async def load(name: str) -> list[Result]:
        folder = tmp_path_factory.mktemp(name)
        (folder / "bot.py").write_text(BOTS[name][0])
        subject = Subject(RunConfig(bot="bot.py"), environ=os.environ, cwd=folder)
        return await look_at_bot(subject, limit_s=1.0 if name == "hangs" else 40.0)

    async def load_all() -> dict[str, list[Result]]:
        return dict(zip(BOTS, await asyncio.gather(*map(load, BOTS)), strict=True))

    return asyncio.run(load_all())


@pytest.mark.parametrize("name", BOTS)
def test_a_bot_that_does_not_load(bots_that_do_not_load: dict[str, list[Result]], name: str) -> None:
    _, fault, mend = BOTS[name]
    [result] = bots_that_do_not_load[name]
    assert result.level == "fail"
    assert fault in result.message
    assert mend in result.hint


def test_a_bot_that_is_not_there(practice: Practice) -> None:
    examined = practice.examine(bot="bott.py", with_call=True)
    assert "bott.py" in only(examined, "bot")
    [audio] = [each for each in examined if each.name == "audio"]
    assert audio.held_up_by == "bot"


def test_a_bot_that_fails_in_its_call(practice: Practice) -> None:
    (practice.folder / "bot.py").write_text("async def bot(runner_args):\n    raise LookupError('no such voice')\n")
    said = only(practice.examine(bot="bot.py", with_call=True, only=["audio"]), "audio")
    assert "no such voice" in said
    assert "`wsvoice dial bot.py -t twilio` shows the whole call" in said


# Settings


def test_what_was_found_in_the_settings_is_told(practice: Practice) -> None:
    practice.settings = [warn("TWILIO_AUTHTOKEN is not read: did you mean TWILIO_AUTH_TOKEN?", "correct it")]
    assert "did you mean TWILIO_AUTH_TOKEN?" in only(practice.examine(), "settings")


def test_a_port_that_may_not_be_listened_on(practice: Practice) -> None:
    # Another program holds it, and takes no connections.
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        practice.change(port=holder.getsockname()[1])
        said = only(practice.examine(), "server")
    assert "cannot be listened on: Address already in use | use another one" in said


def test_a_server_elsewhere_on_this_machine_is_found(practice: Practice) -> None:
    runs = Path(practice.environ["WSVOICE_STATE_DIR"], "runs")
    runs.mkdir(parents=True)
    (runs / "1.json").write_text(json.dumps({"version": 1, "pid": os.getpid(), "url": practice.server.url, "key": "k"}))
    subject = Subject(replace(practice.config, port=free_port()), environ=practice.environ)
    asyncio.run(subject.find_server())
    assert subject.server is not None
    assert subject.server.url == practice.server.url


def test_the_test_webhook_leaves_no_place_taken(practice: Practice) -> None:
    capacity = practice.server.switchboard.capacity
    before = capacity.reserved
    assert found(practice.examine()) == {}
    assert practice.server.lines("webhook answered")
    assert practice.server.lines("Twilio reports completed")
    assert capacity.reserved == before
