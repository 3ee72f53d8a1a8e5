"""
The docs tell the truth: their commands run, their links lead somewhere, and their options exist.

A page is run from its top to its end in an empty folder. ``CONTRIBUTING.md`` says how, and how a block is marked.
"""

from __future__ import annotations

import asyncio
import html
import importlib.util
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer

from tests.environment import clean_environ
from tests.process import ServerProcess, server_process
from tests.providers.companies import load_provider
from wsvoice.audio import rms, write_wav
from wsvoice.cli.main import app
from wsvoice.config import RUN_SETTINGS, resolve_dial
from wsvoice.dial.caller import dial as place_call
from wsvoice.pipecat_moved import MOVED
from wsvoice.providers import PROVIDERS, load_server
from wsvoice.runner.pipecat.patches import PATCHES
from wsvoice.runner.pipecat.patches.old_params import KEPT, RENAMED
from wsvoice.runner.switchboard import FIXED_SETTINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
#: Their commands are run by ``test_package.py``, or are for those who work on wsvoice itself.
OTHERS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]

#: The ports that pages name; each becomes a free one.
PORTS = ("7860", "8765")
#: The page that a newcomer follows: each of its commands is a process, and each call to a file has its own server.
TO_THE_LETTER = "docs/getting-started.md"
COMMANDS = ("run", "dial", "phone", "show", "hangup", "init", "number", "calls", "deploy", "doctor", "test")
COMMAND_TIMEOUT_S = 60
START_TIMEOUT_S = 45

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<mark>[^\n]*) -->\n(?: *\n)? *)?```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
#: Its examples are tests of a project of their own, and are run by the tests of what it describes.
TESTED_ELSEWHERE = {"docs/testing.md"}
#: Options of other programs.
FOREIGN_OPTIONS = {
    # Of pytest, and of its plugin.
    "--junitxml",
    "--calls-repeat",
    "--calls-save-baseline",
    "--calls-compare",
    "--calls-max-slower",
    "--calls-traces",
    "--ws-max-size",
    "--silent",
    "--fail",
    "--data",
    "--basetemp",
    "--bundle",
    "--format",
    "--outfile",
}
FOREIGN_OPTIONS |= {"--build", "--wait", "--profile", "--from-env-file", "--max-graceful-termination-sec"}
FOREIGN_OPTIONS |= {"--rm", "--network", "--no-install-recommends", "--headless", "--allow-anonymous"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the comment above it says."""

    language: str
    text: str
    mark: str

    @property
    def serves(self) -> bool:
        return self.mark == "serves"

    @property
    def file(self) -> str | None:
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None

    @property
    def runs(self) -> bool:
        return self.language == "sh" and not self.mark.startswith("not run: ")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(text_of(page)):
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        found.append(Block(match["language"], "\n".join(lines) + "\n", match["mark"] or ""))
    return found


def commands_in(text: str) -> list[list[str]]:
    """Return the command lines of wsvoice in a block or a piece of code, as words."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if re.match(r"\s*(.* && )?wsvoice ", line)]
    return [shlex.split(line[line.index("wsvoice ") :].split(" > ")[0], comments=True) for line in lines]


@cache
def click_command(name: str) -> Any:
    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


def options_of(command: str) -> set[str]:
    named = click_command(command)
    # Of a group, those of all of its commands.
    params = [param for each in (named, *getattr(named, "commands", {}).values()) for param in each.params]
    return {name for each in params for name in (*each.opts, *each.secondary_opts)}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- What stands there --


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert target.is_relative_to(ROOT), f"{page} links to {link}, which is outside of the repository"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in anchors, f"{page} links to {link}"


def test_readme_links_to_every_page() -> None:
    linked = {link.partition("#")[0] for link in _LINK.findall(text_of("README.md"))}
    assert set(PAGES) <= linked


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_commands_have_options_that_exist(page: str) -> None:
    text = text_of(page)
    pieces = [block.text for block in blocks_of(page)] + re.findall(r"`([^`\n]+)`", text)
    for words in [words for piece in pieces for words in commands_in(piece)]:
        options = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        if not words[1].startswith("-"):
            assert options <= options_of(words[1]), f"{page}: {shlex.join(words)}"


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_options_that_are_named_exist(page: str) -> None:
    known = {option for command in COMMANDS for option in options_of(command)}
    known |= {"--version", "--help", "--install-completion"}
    assert set(_OPTION.findall(text_of(page))) <= known | FOREIGN_OPTIONS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_is_its_help(command: str) -> None:
    generated = generator().page(command)
    assert text_of(f"docs/commands/{command}.md") == generated, "run `python docs/generate.py`"


def lines_of(svg: str) -> set[str]:
    """Return the lines of a picture, with what is another one in each call left out."""
    rows: dict[str, str] = {}
    for y, text in re.findall(r'<text [^>]*y="([^"]+)"[^>]*clip-path[^>]*>([^<]*)</text>', svg):
        rows[y] = rows.get(y, "") + html.unescape(text)
    # One underrun, two underruns.
    return {re.sub(r"\w+\.\.\.|[0-9.]+|s\b", "…", " ".join(row.split())).replace("…", "") for row in rows.values()}


def test_the_picture_of_a_call_is_what_a_call_shows() -> None:
    generate, kept = generator(), text_of("docs/images/dial.svg")
    # A longer path would break its line.
    with TemporaryDirectory(dir="/tmp") as folder:
        command = [*generate.CALL[:-1], f"{folder}/a.wav"]
        # A machine that is busy may add what went wrong, or hold the bot's answer up once.
        for _ in range(3):
            shown = generate.call_text(*command).replace(command[-1], generate.CALL[-1])
            fresh = lines_of(generate.picture(" ".join(generate.CALL), shown))
            if lines_of(kept) <= fresh:
                break
    assert len(fresh) > 12
    assert lines_of(kept) <= fresh, "run `python docs/generate.py picture`"
    # It shows everywhere, and asks nobody for anything.
    assert not re.search(r"@font-face|@import|<image|href", kept)
    for name in ("dial.svg", "dial.wav"):
        assert (DOCS / "images" / name).stat().st_size < 200_000
    with wave.open(str(DOCS / "images" / "dial.wav")) as file:
        assert file.getnchannels() == 2
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    caller, bot = (frames[:, channel].tobytes() for channel in (0, 1))
    assert min(rms(caller), rms(bot)) > 500


def test_every_setting_of_run_is_on_its_page() -> None:
    page = text_of("docs/commands/run.md")
    assert [each.name for each in RUN_SETTINGS if f"| `{each.name}` |" not in page] == []


def test_what_a_reload_leaves_as_it_is() -> None:
    _, rest = text_of("docs/workers.md").split("| what a reload leaves as it is |")
    named = set(re.findall(r"`([^`]+)`", rest.split("\n\n", 1)[0]))
    # Those of one client at a time, which has no workers, and what has no option.
    unnamed = {"url", "headers", "causes", "traces"}
    flags = {each.field: each.flag or f"--{each.name}" for each in RUN_SETTINGS}
    flags |= {"state_folder": "WSVOICE_STATE_DIR", "disabled_patches": "WSVOICE_DISABLE_PATCHES"}
    assert named == {flags[field] for field in FIXED_SETTINGS if field not in unnamed}


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_providers_page_knows_its_settings_and_quirks(name: str) -> None:
    page, provider = text_of(f"docs/providers/{name}.md"), load_provider(name)
    named = set(re.findall(rf"\b{name.upper()}_[A-Z0-9_]+\b", page))
    assert named <= set(provider.credential_names)
    if provider.signs:
        assert provider.credential_names[0] in named
    section = page.split("| quirk |", 1)[1].split("\n\n", 1)[0] if provider.quirks else ""
    rows = re.findall(r"^\| `([a-z-]+)=([^`]+)` \|", section, re.MULTILINE)
    assert {row[0] for row in rows} == set(provider.quirks)
    for quirk, value in rows:
        choices = provider.quirks[quirk].choices
        assert not choices or value in choices
    for title in ("Set it up", "What is signed", "The call", "Traps", "Test calls", "Not tried"):
        assert f"\n## {title}\n" in page


def test_every_page_installs_in_the_same_way() -> None:
    venv = "python3 -m venv .venv && . .venv/bin/activate\n"
    for page in ("README.md", TO_THE_LETTER):
        assert f"{venv}pip install .\n" in text_of(page), page
    for path in (ROOT / "CONTRIBUTING.md", *ROOT.glob("templates/*/README.md")):
        assert f"{venv}pip install -e '.[dev]'\n" in path.read_text(encoding="utf-8"), path


def test_the_page_of_asterisk_has_the_lines_that_are_printed() -> None:
    server = load_server("asterisk", {"ASTERISK_PASSWORD": "..."})
    printed = "\n".join(server.setup_lines("ws://localhost:7860/ws/asterisk"))
    blocks = [block.text for block in blocks_of("docs/providers/asterisk.md")]
    for section in ("[wsvoice]", "[telephones]"):
        (block,) = (text for text in blocks if text.startswith(section))
        assert block in f"{printed}\n"
    commands = [block for block in blocks if "reload" in block]
    assert [each.strip() for each in printed.split("; then: ")[1].split(";")] == commands[0].splitlines()


def test_the_page_about_pipecat_knows_every_patch_and_old_name() -> None:
    page = text_of("docs/from-pipecat-runner.md")
    section = page.split("## Patches", 1)[1]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == list(PATCHES)
    for old, new in MOVED.items():
        assert f"`{old}`" in page
        assert f"`{new}`" in page
    # The longer names of older cameras stand there as one.
    for name in (*KEPT, *(each for each in RENAMED if not each.startswith("camera_out_"))):
        assert f"`{name}`" in page


def test_every_reason_for_not_running_a_block_is_given() -> None:
    marks = [block.mark for page in PAGES for block in blocks_of(page) if block.language == "sh"]
    assert [mark for mark in marks if mark not in ("", "serves") and not re.match(r"not run: \w", mark)] == []


def test_blocks_are_found_with_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n<!-- not run: no -->\n```sh\na\n```\n\n1. item\n\n   <!-- serves -->\n   ```sh\n   b\n   ```\n\n"
        "```sh\nc\n```\n\n<!-- file: x.py -->\n```python\nif d:\n    e\n```\n"
    )
    assert blocks_of(str(page)) == [
        Block("sh", "a\n", "not run: no"),
        Block("sh", "b\n", "serves"),
        Block("sh", "c\n", ""),
        Block("python", "if d:\n    e\n", "file: x.py"),
    ]


def test_a_wrong_option_would_be_found() -> None:
    [first, second] = commands_in(
        "cd x && wsvoice dial bot.py --nope  # why\nwsvoice run -t twilio > log\necho wsvoice\n"
    )
    assert first == ["wsvoice", "dial", "bot.py", "--nope"]
    assert "--nope" not in options_of("dial")
    assert second == ["wsvoice", "run", "-t", "twilio"]
    assert _OPTION.findall("`--nope` and a--b, x --max-calls N") == ["--nope", "--max-calls"]


# -- What is run --


def free_port() -> int:
    """Return a port that stays free while a page is followed: none that the system gives to who asks for any."""
    while True:
        port = secrets.randbelow(10_000) + 20_000
        with socket.socket() as unused, suppress(OSError):
            unused.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


class Servers:
    """
    ``wsvoice run`` for each bot that pages call, started when it is first called, and shared by all of its calls.

    Attributes:
        secrets: What carriers sign with, by environment variable name; each server verifies with its counterpart.
    """

    def __init__(self, factory: pytest.TempPathFactory, stack: ExitStack) -> None:
        self._factory = factory
        self._stack = stack
        self._lock = threading.Lock()
        self._servers: dict[str, ServerProcess] = {}
        self.secrets: dict[str, str] = {}
        self._verifying: dict[str, str] = {}
        for provider in map(load_provider, PROVIDERS):
            carriers, bots = provider.test_credentials(os.urandom(32))
            self.secrets |= carriers
            # Not what the API is asked with: no server is told where a simulated one is.
            self._verifying |= {name: bots[name] for name in provider.credential_names[:1] if name in bots}

    def serving(self, bot: str) -> ServerProcess:
        """Return the server of the bot with that source."""
        with self._lock:
            if bot not in self._servers:
                folder = self._factory.mktemp("server")
                self._servers[bot] = self._stack.enter_context(server_process(folder, bot, **self._verifying))
            return self._servers[bot]


class Reader:
    """Somebody who does what a page says, in an empty folder, with terminals for what goes on."""

    def __init__(self, page: str, folder: Path, servers: Servers, stack: ExitStack) -> None:
        self.page = page
        self.folder = self.cwd = folder
        self.said: list[str] = []
        self._servers = servers
        self._stack = stack
        self._ports = {named: str(free_port()) for named in PORTS}
        # What is said in a call takes a second instead of four.
        word = folder / "word.wav"
        tone = 8000 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
        write_wav(word, [tone.astype("<i2").tobytes()], 8000)
        self.environ = clean_environ(
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            NO_COLOR="1",
            WSVOICE_DIAL_AUDIO=str(word),
            WSVOICE_DIAL_LISTEN="0.3",
            WSVOICE_STATE_DIR=f"{folder}-state",
        )

    def follow(self) -> None:
        """Do what each block of the page says."""
        blocks = blocks_of(self.page)
        if not any(block.file == "bot.py" for block in blocks):
            shutil.copy(ROOT / "examples" / "echo.py", self.cwd / "bot.py")
        for block in blocks:
            if block.file is not None:
                (self.cwd / block.file).write_text(block.text, encoding="utf-8")
            elif block.serves:
                self._stack.enter_context(self._serve(block.text))
            elif block.runs and self.page == TO_THE_LETTER:
                self._run(block.text)
            elif block.runs:
                for is_call, lines in groupby(
                    block.text.splitlines(True), lambda line: line.startswith("wsvoice dial ")
                ):
                    if is_call:
                        for words in commands_in(self._with_free_ports("".join(lines))):
                            self._dial(words[2:])
                    else:
                        self._run("".join(lines))

    def _dial(self, words: list[str]) -> None:
        """
        Do what ``wsvoice dial`` does with these words, in this process.

        A bot's file is called at the server that it shares with other calls, except where a call is answered through
        the provider's API: a simulated one is known to a server of the call's own only.
        """
        params = click_command("dial").make_context("dial", words).params
        config = resolve_dial(params, environ=self.environ, cwd=self.cwd).config
        config = replace(config, environ=self.environ, cwd=self.cwd)
        log = ""
        if config.target != "bot.py":
            report = asyncio.run(place_call(config))
        elif config.quirks.get("webhook") == "call-control":
            report = asyncio.run(place_call(replace(config, target=str(self.cwd / config.target))))
        else:
            server = self._servers.serving((self.cwd / "bot.py").read_text(encoding="utf-8"))
            report = asyncio.run(place_call(replace(config, target=server.url, credentials=self._servers.secrets)))
            log = server.log()
        said = "\n".join(report.to_lines())
        self.said.append(said)
        assert report.verdict == "passed", f"{self.page}:\n{shlex.join(words)}\n{said}\n{log}"
        assert " ERROR " not in log, f"{self.page}:\n{shlex.join(words)}\n{log}"

    def _run(self, text: str) -> None:
        place = self.folder / "cwd"
        script = f"{self._with_free_ports(text)}\npwd > {shlex.quote(str(place))}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.cwd,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        self.said.append(done.stdout + done.stderr)
        assert done.returncode == 0, f"{self.page}:\n{text}\n{done.stdout}{done.stderr}"
        self.cwd = Path(place.read_text(encoding="utf-8").strip())

    @contextmanager
    def _serve(self, text: str) -> Iterator[None]:
        named = "8765" if "websocket-server" in text or "8765" in text else "7860"
        port = self._ports[named]
        log = self.folder / f"{named}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._with_free_ports(text)}"],
                cwd=self.cwd,
                env={**self.environ, "WSVOICE_PORT": port},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not listens(int(port)):
                assert process.poll() is None, f"{self.page}:\n{text}\n{log.read_text()}"
                assert time.monotonic() < deadline, f"{self.page}:\n{text}\n{log.read_text()}"
                time.sleep(0.05)
            yield
            assert process.poll() is None, f"{self.page}:\n{text}\n{log.read_text()}"
        finally:
            # Twice, so that it waits for nobody.
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                process.send_signal(number)
                try:
                    process.wait(5)
                    break
                except subprocess.TimeoutExpired:
                    continue

    def _with_free_ports(self, text: str) -> str:
        for named, port in self._ports.items():
            text = re.sub(rf"\b{named}\b", port, text)
        return text


def follow(page: str, folder: Path, servers: Servers) -> list[str]:
    with ExitStack() as stack:
        reader = Reader(page, folder, servers, stack)
        reader.follow()
    return reader.said


RUN_PAGES = [page for page in PAGES if page not in TESTED_ELSEWHERE and any(block.runs for block in blocks_of(page))]


@pytest.fixture(scope="module")
def followed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[list[str]]]]:
    """What each wanted page's commands printed: pages are followed side by side, since most of a call is waiting."""
    wanted = {item.name for item in request.session.items}
    with ExitStack() as stack:
        servers = Servers(tmp_path_factory, stack)
        pages = [page for page in RUN_PAGES if f"{test_the_commands_of_a_page_run.__name__}[{page}]" in wanted]
        folders = {page: tmp_path_factory.mktemp(Path(page).stem) for page in pages}
        pool = stack.enter_context(ThreadPoolExecutor(3))
        yield {page: pool.submit(follow, page, folder, servers) for page, folder in folders.items()}


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("curl") is None, reason="there is no bash or curl")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_commands_of_a_page_run(followed: dict[str, Future[list[str]]], page: str) -> None:
    printed = followed[page].result()
    calls = sum(words[1:2] == ["dial"] for block in blocks_of(page) if block.runs for words in commands_in(block.text))
    assert sum(text.splitlines().count("passed") for text in printed) == calls


def test_the_pages_that_matter_are_run() -> None:
    wanted = [
        "getting-started",
        "transports",
        "from-pipecat-runner",
        "own-server",
        *(f"providers/{n}" for n in PROVIDERS),
    ]
    assert {f"docs/{each}.md" for each in wanted} <= set(RUN_PAGES)
