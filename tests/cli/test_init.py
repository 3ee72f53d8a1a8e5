"""``wsvoice init``: flags, questions on a terminal, what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.environment import clean_environ, clean_process
from wsvoice.cli.main import app
from wsvoice.providers import PROVIDERS
from wsvoice.scaffold import load_templates, own_editable_folder, own_requirement
from wsvoice.scenarios.options import trace_file
from wsvoice.trace import read_trace

TEMPLATES = load_templates()
STATED = [
    f"note: wsvoice is installed from {own_requirement().partition(' @ ')[2]}; "
    "README.md says how to take the project elsewhere",
]
if clone := own_editable_folder():
    STATED.append(f"note: installing it replaces your editable wsvoice; `pip install -e {clone}` brings it back")
FILES = {path for path, _ in TEMPLATES["echo"].files()}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, without settings from outside."""
    clean_process(monkeypatch)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["init", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


# -- Flags --


def test_without_a_terminal_nothing_is_asked(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "wsvoice", "init"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.splitlines() == [
        "created my-bot from the template echo: repeats the caller; the smallest bot there is",
        "Next:",
        "  cd my-bot",
        "  pip install -e '.[dev]'",
        "  pytest && wsvoice dial bot.py",
        *(STATED if " @ " in own_requirement() else []),
    ]
    project = tomllib.loads((tmp_path / "my-bot" / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [own_requirement()]
    assert files_in(tmp_path) == {f"my-bot/{name}" for name in FILES}


def test_flags_say_it_all(tmp_path):
    result = invoke("bots/menu", "--template", "ivr", "-t", "telnyx", "-t", "plivo")
    assert "  cd bots/menu\n" in result.stderr
    env = (tmp_path / "bots" / "menu" / ".env.example").read_text()
    assert re.findall(r"^\w+=$", env, re.M) == ["TELNYX_PUBLIC_KEY=", "PLIVO_AUTH_TOKEN="]
    assert 'name = "menu"' in (tmp_path / "bots" / "menu" / "pyproject.toml").read_text()
    assert "wsvoice run bot.py --tunnel" in (tmp_path / "bots" / "menu" / "README.md").read_text()


def test_a_choice_is_an_option_of_its_own(tmp_path):
    options = {name for template in TEMPLATES.values() for name in template.choices}
    shown = invoke("--help").stdout
    for name in options:
        assert f"--{name} NAME" in shown
    for template in TEMPLATES.values():
        for name, choice in template.choices.items():
            option = list(choice.options)[-1]
            result = invoke(f"{template.name}-{name}", "--template", template.name, f"--{name}", option, "--json")
            assert json.loads(result.stdout)["choices"][name] == option
            if needed := choice.options[option].env:
                [note] = [line for line in result.stderr.splitlines() if line.startswith("note: a call needs ")]
                assert all(variable in note for variable in needed)


def test_json_is_one_object_on_stdout(tmp_path):
    result = invoke("my-bot", "-t", "exotel", "--json")
    assert result.stdout.count("\n") == 1
    data = json.loads(result.stdout)
    sizes = {each["path"]: each["bytes"] for each in data.pop("files")}
    assert sizes == {name: (tmp_path / "my-bot" / name).stat().st_size for name in FILES}
    assert data == {
        "dir": "my-bot",
        "template": "echo",
        "providers": ["exotel"],
        "choices": {},
        "next": ["cd my-bot", "pip install -e '.[dev]'", "pytest && wsvoice dial bot.py"],
    }


def test_a_dry_run_prints_the_tree_and_writes_nothing(tmp_path):
    result = invoke("my-bot", "--template", "ivr", "--dry-run")
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "my-bot/"
    folder = TEMPLATES["ivr"].folder
    size = (folder / "prompts" / "menu.wav").stat().st_size
    assert re.fullmatch(rf"    menu\.wav +{size:,} bytes", lines[lines.index("  prompts/") + 5])
    assert lines.index("  .github/") + 1 == lines.index("    workflows/")
    assert len([line for line in lines if line.endswith(" bytes")]) == len(list(TEMPLATES["ivr"].files()))
    assert list(tmp_path.iterdir()) == []

    data = json.loads(invoke("my-bot", "--dry-run", "--json").stdout)
    assert {each["path"] for each in data["files"]} == FILES
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_ends_as_the_real_one_would(tmp_path):
    (tmp_path / "my-bot").mkdir()
    (tmp_path / "my-bot" / "bot.py").write_text("mine")
    dry = invoke("--dry-run", code=2)
    assert dry.stderr == invoke("my-bot", code=2).stderr
    assert "my-bot/bot.py already exists\n" in dry.stderr
    invoke("--dry-run", "--force")
    assert files_in(tmp_path) == {"my-bot/bot.py"}


def test_the_list_has_every_template_and_its_choices():
    result = invoke("--list")
    assert result.stdout == ""
    for template in TEMPLATES.values():
        assert re.search(rf"^  {template.name} +{re.escape(template.description)}$", result.stderr, re.M)
        for name, choice in template.choices.items():
            assert re.search(rf"^    --{name} +{' '.join(choice.options)}$", result.stderr, re.M)
    listed = json.loads(invoke("--list", "--json").stdout)["templates"]
    assert [each["name"] for each in listed] == list(TEMPLATES)


def test_force_overwrites_and_keeps_the_rest(tmp_path):
    invoke("my-bot", "-t", "telnyx")
    (tmp_path / "my-bot" / "mine.py").write_text("mine")
    invoke("my-bot", "-t", "plivo", "--force")
    assert files_in(tmp_path / "my-bot") == FILES | {"mine.py"}
    assert "PLIVO_AUTH_TOKEN" in (tmp_path / "my-bot" / ".env.example").read_text()


def test_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my-bot" / ".git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-bot")
    result = invoke(".")
    assert "cd " not in result.stderr
    assert files_in(tmp_path / "my-bot") == FILES


def test_a_new_project_takes_a_call(tmp_path, monkeypatch):
    invoke("my-bot", "--template", "ivr", "-t", "plivo")
    monkeypatch.chdir(tmp_path / "my-bot")
    result = CliRunner().invoke(app, ["dial", "bot.py", "--json", "--listen", "0.3", "--dtmf", "#wwwwwwww"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    # The caller waits for the bot's hang-up, also on a busy machine. The project's own settings name the company.
    assert (report["provider"], report["verdict"], report["ended_by"]) == ("plivo", "passed", "bot")


def run_scenarios(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsvoice", "test", *options]
    return subprocess.run(
        command, cwd=folder, env=clean_environ(), capture_output=True, text=True, timeout=90, check=False
    )


def test_the_scenario_of_a_new_project_passes(tmp_path):
    invoke("my-bot", "-t", "vonage")
    done = run_scenarios(tmp_path / "my-bot")
    assert done.returncode == 0, done.stderr
    passed, verdict = done.stderr.splitlines()
    assert passed.split()[:2] == ["passed", "echo[vonage]"]
    assert verdict == "passed: 1 scenario"


LEAVING_BOT = """
async def bot(runner_args):
    print("nothing to say")
"""

SILENT_BOT = """
import asyncio

async def bot(runner_args):
    await asyncio.sleep(60)
"""


def test_the_scenario_of_a_new_project_fails_with_a_bot_that_is_broken(tmp_path):
    invoke("my-bot", "--template", "ivr")
    project = tmp_path / "my-bot"
    (project / "bot.py").write_text(LEAVING_BOT)
    (project / "silent.py").write_text(SILENT_BOT)
    scenario = (project / "tests" / "menu.call.toml").read_text()
    silent = scenario.replace('bot = "bot.py"', 'bot = "silent.py"\nanswer_timeout = "0.5s"')
    (project / "tests" / "silent.call.toml").write_text(silent)

    done = run_scenarios(project, "--traces", "traces")

    assert done.returncode == 1, done.stderr
    lines = [line.strip() for line in done.stderr.splitlines()]
    for name, failures in {
        "menu": ["the bot ended the call before it made a sound (1000)"],
        "silent": [
            "the bot never made a sound",
            "greeting: the bot did not speak",
            "greeting: prompts/welcome.wav was not heard: the bot made no sound",
        ],
    }.items():
        at = lines.index(f"{name}[twilio]") + 1
        assert lines[at : at + len(failures)] == failures
        trace = trace_file(project / "traces", f"tests/{name}[twilio]")
        assert f"see the call: wsvoice show {trace}" in lines[at:]
        with read_trace(trace) as found:
            assert found.is_complete


# -- Misuse --


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--template", "ivrr"], "no template is called 'ivrr'", "did you mean `ivr`?"),
        (
            ["--template", "ivr", "-t", "twilio", "-t", "bandwidth"],
            "the template ivr is not for Bandwidth: its streams carry no keys",
            "take another template than ivr, or another provider than bandwidth",
        ),
        (["-t", "twillio"], "no provider is called 'twillio'", "did you mean `twilio`?"),
        (["--stt", "deepgram"], "the template echo has no choice --stt", "leave it out"),
        (["3bot!"], "'3bot!' is not a name for a Python project", "`wsvoice init bot`"),
        (["bots/wsvoice"], "'wsvoice' is the name of a package that every bot needs", "`wsvoice init bots/my-wsvoice`"),
        ([""], "the folder's name is empty", "`wsvoice init my-bot`"),
        (["a-file"], "a-file is not a folder", "choose another folder"),
        (["a-file/my-bot"], "a-file is not a folder", "choose another folder"),
        (["taken"], "taken/bot.py already exists", "--force"),
        (["one", "two"], "unexpected extra argument", "`wsvoice init --help` lists what there is"),
        (["--templat", "ivr"], "no such option: --templat", "did you mean `--template`?"),
    ],
)
def test_misuse_is_one_line_and_a_hint_and_writes_nothing(tmp_path, arguments, message, hint):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "bot.py").write_text("mine")
    result = invoke(*arguments, code=2)
    assert result.stdout == ""
    error, hinted = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hinted.startswith("hint:  ")
    assert hint in hinted
    assert files_in(tmp_path) == {"a-file", "taken/bot.py"}


def test_a_full_disk_is_a_failure_that_leaves_nothing(tmp_path, monkeypatch):
    def write_bytes(path: Path, content: bytes) -> int:
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    result = invoke("my-bot", code=1)
    assert result.stderr.splitlines() == [
        "error: my-bot cannot be written: No space left on device",
        "hint:  nothing was written",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals end a process otherwise there")
def test_a_signal_half_way_leaves_nothing(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "def write_bytes(path, content):\n"
        "    path.write_text('half of it')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "Path.write_bytes = write_bytes\n"
        "from wsvoice.cli.main import app\n"
        "app(['init', 'new/my-bot'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


# -- On a terminal --


class Terminal:
    """``wsvoice init`` on a pseudo-terminal, and what it has printed there so far."""

    def __init__(self) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        environ = clean_environ(TERM="xterm", COLUMNS="120", NO_COLOR="1")
        command = [sys.executable, "-m", "wsvoice", "init"]
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
        )
        os.close(theirs)
        self.printed = ""
        self._seen = 0
        self._deadline = time.monotonic() + 60

    def read(self) -> bool:
        """Take what is printed next; false once the other end is closed."""
        left_s = self._deadline - time.monotonic()
        ready, _, _ = select.select([self._ours], [], [], max(0.0, left_s))
        assert ready, f"nothing more came after:\n{self.printed}"
        try:
            piece = os.read(self._ours, 4096)
        except OSError:
            # What Linux says when nobody has the terminal open any more.
            piece = b""
        self.printed += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", piece.decode("utf-8", "replace"))
        return bool(piece)

    def answer(self, question: str, words: str) -> None:
        """Wait for a question, and type an answer."""
        while not (found := re.compile(re.escape(question) + r".*: $").search(self.printed, self._seen)):
            assert self.read(), f"it ended before it asked {question!r}:\n{self.printed}"
        self._seen = found.end()
        os.write(self._ours, words.encode() if words == "\x04" else f"{words}\n".encode())

    def finish(self) -> int:
        """Return the exit code once it has ended."""
        while self.read():
            pass
        os.close(self._ours)
        return self._process.wait(30)

    def end(self) -> None:
        """End the process if the test did not come to it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(30)


@pytest.fixture
def terminal(empty_folder):
    pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    terminal = Terminal()
    yield terminal
    terminal.end()


def test_enter_alone_takes_every_default(terminal, tmp_path):
    terminal.answer("Folder", "")
    terminal.answer("Template", "")
    terminal.answer("Providers", "")
    assert terminal.finish() == 0, terminal.printed
    assert "Folder (my-bot): " in terminal.printed
    assert "Template (echo): " in terminal.printed
    assert f"({', '.join(PROVIDERS)}) (twilio): " in terminal.printed
    assert "  cd my-bot\r\n  pip install -e '.[dev]'\r\n  pytest && wsvoice dial bot.py\r\n" in terminal.printed
    assert files_in(tmp_path) == {f"my-bot/{name}" for name in FILES}
    assert (tmp_path / "my-bot" / "bot.py").read_bytes() == (TEMPLATES["echo"].folder / "bot.py").read_bytes()


def test_answers_are_taken_and_wrong_ones_asked_again(terminal, tmp_path):
    terminal.answer("Folder", "3bot!")
    terminal.answer("Folder", "menu")
    terminal.answer("Template", "irv")
    terminal.answer("Template", "ivr")
    terminal.answer("Providers", "telnyx, twillio")
    terminal.answer("Providers", "telnyx, twilio")
    assert terminal.finish() == 0, terminal.printed
    assert "error: '3bot!' is not a name for a Python project\r\n" in terminal.printed
    assert "did you mean `ivr`?" in terminal.printed
    assert "did you mean `twilio`?" in terminal.printed
    env = (tmp_path / "menu" / ".env.example").read_text()
    assert re.findall(r"^\w+=$", env, re.M) == ["TELNYX_PUBLIC_KEY=", "TWILIO_AUTH_TOKEN="]
    assert (tmp_path / "menu" / "prompts" / "menu.wav").is_file()


def test_the_choices_of_a_template_are_asked_for(terminal, tmp_path):
    template = next((each for each in TEMPLATES.values() if each.choices), None)
    if template is None:
        pytest.skip("there is no template with a choice")
    terminal.answer("Folder", "talker")
    terminal.answer("Template", template.name)
    for choice in template.choices.values():
        terminal.answer(choice.help.rstrip("."), list(choice.options)[-1])
    terminal.answer("Providers", "")
    assert terminal.finish() == 0, terminal.printed
    env = (tmp_path / "talker" / ".env.example").read_text()
    for choice in template.choices.values():
        for variable in list(choice.options.values())[-1].env:
            assert f"\n{variable}=" in env


def test_the_end_of_the_input_ends_it_and_writes_nothing(terminal, tmp_path):
    terminal.answer("Folder", "")
    terminal.answer("Template", "\x04")
    assert terminal.finish() == 130, terminal.printed
    assert "Traceback" not in terminal.printed
    assert list(tmp_path.iterdir()) == []
