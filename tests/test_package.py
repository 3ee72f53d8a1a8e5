"""What is in the package and in the repository, and that README and CONTRIBUTING tell the truth about it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import wave
from importlib.resources import files
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import wsvoice
from tests.environment import clean_environ
from wsvoice.cli.main import app
from wsvoice.dial.report import CallReport, TurnReport

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# The names without their endings, so that this file holds no address itself.
_REGISTRIES = re.compile(
    rf"({'|'.join(('pypi', 'pythonhosted', 'npmjs', 'yarnpkg', 'rubygems', 'anaconda'))})\.(org|com|python)"
    r"|--(extra-)?index-url|--find-links",
    re.IGNORECASE,
)
_LOCK_FILES = re.compile(
    r"(^|/)((uv|poetry|pdm|pipfile|cargo|yarn|conda|gemfile)\.lock|pylock.*\.toml|package-lock\.json|pnpm-lock\.yaml)$",
    re.IGNORECASE,
)
_MACHINE_PATHS = re.compile(
    r"(?<![\w.:/-])/(home/[a-z][\w.-]*/|root/|work/|Users/[A-Za-z]|tmp/venv|opt/pypi)|[A-Z]:\\+Users\\+[A-Za-z]"
)


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=80)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)


def options_of(command: str) -> set[str]:
    group = typer.main.get_command(app)
    return {name for each in group.commands[command].params for name in (*each.opts, *each.secondary_opts)}  # type: ignore[attr-defined]


def tracked_files() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git clone")
    # A clone may belong to somebody else than the user who runs the tests.
    listed = run("git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", cwd=ROOT)
    if listed.returncode:
        pytest.skip(f"git does not list the files: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# -- The package --


def test_the_version_is_the_packages() -> None:
    shown = run(sys.executable, "-m", "wsvoice", "--version", cwd=ROOT)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"wsvoice {wsvoice.__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(a|b|rc|dev)\d+)?", wsvoice.__version__)


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == re.sub(r"\.?(a|b|rc|dev)\d+$", "", wsvoice.__version__)


def test_the_package_says_that_it_is_typed() -> None:
    assert files("wsvoice").joinpath("py.typed").is_file()


def test_the_built_in_question_is_in_the_package() -> None:
    with files("wsvoice").joinpath("dial", "question.wav").open("rb") as file, wave.open(file) as question:
        assert (question.getnchannels(), question.getsampwidth()) == (1, 2)
        assert 1 < question.getnframes() / question.getframerate() < 10


# -- The repository --


def test_no_file_depends_on_a_registrys_address() -> None:
    named = {name: match[0] for name in tracked_files() if (match := _REGISTRIES.search(text_of(name)))}
    # This file names them in order to find them.
    named.pop("tests/test_package.py", None)
    assert named == {}


def test_there_is_no_lock_file() -> None:
    assert [name for name in tracked_files() if _LOCK_FILES.search(name)] == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    named = {name: match[0] for name in tracked_files() if (match := machine_path_in(name))}
    assert named == {}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (_REGISTRIES, "https://{}.org/simple".format("pypi")),
        (_REGISTRIES, "pip install --index-url x"),
        (_LOCK_FILES, "sub/uv.lock"),
        (_LOCK_FILES, "Pipfile.lock"),
        (_MACHINE_PATHS, "open('/{}/somebody/x')".format("home")),
        (_MACHINE_PATHS, "cd /{}/main".format("work")),
        (_MACHINE_PATHS, "/{}/.cache".format("root")),
    ],
)
def test_what_is_looked_for_would_be_found(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)


def machine_path_in(name: str) -> re.Match[str] | None:
    # An image's own user has a home, which is nobody's machine.
    own = f"/{'home'}/bot/" if Path(name).name == "Dockerfile" else None
    text = text_of(name)
    return _MACHINE_PATHS.search(text.replace(own, "") if own else text)


def text_of(name: str) -> str:
    content = (ROOT / name).read_bytes()
    return "" if b"\0" in content else content.decode("utf-8", "replace")


# -- The documents --


@pytest.mark.parametrize("command", ["run", "dial"])
def test_readme_lists_options_that_exist(command: str) -> None:
    start = README.index(f"\n`wsvoice {command} [")
    table = README[start:].split("\n|---", 1)[1].split("\n\n", 1)[0]
    named = {
        option for row in table.splitlines()[1:] for option in re.findall(r"(?<![\w-])--?[a-z-]+", row.split("|")[1])
    }
    assert len(named) > 8
    assert named <= options_of(command)


def test_readmes_commands_have_options_that_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if "wsvoice " in line]
    lines += re.findall(r"`(wsvoice (?:run|dial)[^`]*)`", README)
    assert len(lines) > 8
    for line in lines:
        words = shlex.split(line[line.index("wsvoice ") :].split(" > ")[0])
        options = {word for word in words[2:] if word.startswith("-")}
        assert options <= options_of(words[1]), line


def test_readme_shows_every_field_of_the_report() -> None:
    [shown] = [json.loads(block) for block in blocks("json")]
    report = CallReport(provider="twilio", target="bot.py", turns=[TurnReport(0.0, 1.0)]).to_dict()
    assert list(shown) == list(report)
    assert list(shown["turns"][0]) == list(report["turns"][0])


def test_readmes_first_bot_has_five_lines_and_passes_a_call(tmp_path: Path) -> None:
    bot, _ = blocks("python")
    assert len(bot.split("async def bot(runner_args):\n")[1].splitlines()) == 5
    (tmp_path / "bot.py").write_text(bot, encoding="utf-8")
    called = run(sys.executable, "-m", "wsvoice", "dial", "bot.py", cwd=tmp_path, env=clean_environ())
    assert called.returncode == 0, called.stderr


def test_readmes_bot_passes_the_call_that_readme_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, bot = blocks("python")
    (tmp_path / "bot.py").write_text(bot, encoding="utf-8")
    [line] = [line for block in blocks("sh") for line in block.splitlines() if "--param" in line]

    monkeypatch.chdir(tmp_path)
    called = CliRunner().invoke(app, [*shlex.split(line)[1:], "--json", "-v"])

    assert called.exit_code == 0, called.stderr
    report = json.loads(called.stdout)
    assert (report["verdict"], report["ended_by"], report["digits_sent"]) == ("passed", "bot", "#")
    assert "language en" in called.stderr


def test_contributing_lists_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.split("src/wsvoice/\n", 1)[1].split("\nexamples/", 1)[0]
    listed, folder = set(), ""
    for line in tree.splitlines():
        names = re.match(r"( +)((?:[\w./]+(?:, )?)+)(?: |$)", line)
        assert names is not None, line
        if names[2].endswith("/"):
            folder = names[2]
            continue
        prefix = folder if len(names[1]) > 2 else ""
        listed |= {prefix + name for name in names[2].split(", ")}
    package = ROOT / "src" / "wsvoice"
    assert {name for name in listed if not (package / name).is_file()} == set(), "listed, but not there"
    # What is not committed yet may be on its way.
    paths = [ROOT / name for name in tracked_files()]
    there = {path.relative_to(package).as_posix() for path in paths if package in path.parents if path.suffix == ".py"}
    # The version is no layer, and a new provider is to be one package and one line in the registry.
    unlisted = {"_version.py"} | {
        f"{layer}/__init__.py"
        for layer in (
            "runner",
            "runner/pipecat",
            "runner/pipecat/patches",
            "runner/workers",
            "dial",
            "dial/load",
            "phone",
            "browser_phone",
            "doctor",
            "deploy",
            "scenarios",
            "cli",
        )
    }
    unlisted |= {name for name in there if name.split("/")[0] == "providers" and name.count("/") == 2}
    assert there - listed - unlisted == set(), "there, but not listed"
