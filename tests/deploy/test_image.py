"""The Dockerfile: its steps are carried out by a shell, with a pip that only notes what it is asked for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.deploy.tools import run
from wsvoice.deploy.image import Project, dockerfile, dockerignore


def steps(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, each with its arguments in one line."""
    lines = re.sub(r"\\\n", "", "\n".join(line for line in text.split("\n") if not line.startswith("#")))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines.splitlines() if line.strip()]


def build(folder: Path, project: Project) -> list[str]:
    """Carry out what the Dockerfile does in the project's folder; return what pip was asked to install."""
    bin = folder.parent / "bin"
    bin.mkdir()
    for name, script in (
        ("pip", 'echo "$@" >>../pip.txt; cp requirements.txt ../ 2>/dev/null; true'),
        ("useradd", ":"),
        ("install", ":"),
    ):
        (bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin / name).chmod(0o755)
    (bin / "python").symlink_to(sys.executable)
    for instruction, arguments in steps(dockerfile(project, path="Dockerfile")):
        if instruction == "COPY" and "wheels" in arguments:
            for wheel in (folder / "wheels").glob("*.whl"):
                (folder / wheel.name).write_bytes(wheel.read_bytes())
        if instruction == "RUN":
            done = run("env", f"PATH={bin}:/usr/bin:/bin", "sh", "-c", arguments, cwd=folder)
            assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return (folder.parent / "pip.txt").read_text().splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "app"
    made.mkdir()
    return made


PYPROJECT = """[project]
name = "x"
dependencies = ["wsvoice @ file:///home/me/wsvoice", "pipecat-ai[openai]>=1.14,<2", 'a; python_version < "4"']
"""


def test_what_pyproject_needs_is_installed(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "wheels").mkdir()
    (folder / "wheels" / "wsvoice-1.whl").touch()
    assert build(folder, Project("bot.py", requires="pyproject.toml")) == [
        "install --no-cache-dir wsvoice-1.whl wsvoice -r requirements.txt"
    ]
    needed = (folder.parent / "requirements.txt").read_text()
    assert needed.splitlines() == ["wsvoice", "pipecat-ai[openai]>=1.14,<2", 'a; python_version < "4"']


def test_what_requirements_name_is_installed(folder: Path) -> None:
    (folder / "requirements.txt").write_text("openai\n")
    asked = build(folder, Project("bot.py", requires="requirements.txt"))
    assert asked == ["install --no-cache-dir wsvoice -r requirements.txt"]
    assert (folder.parent / "requirements.txt").read_text() == "openai\n"


def test_a_folder_that_says_nothing_gets_wsvoice(folder: Path) -> None:
    assert build(folder, Project("bot.py")) == ["install --no-cache-dir wsvoice"]


def test_a_module_of_a_package_is_installed_with_it(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(PYPROJECT)
    asked = build(folder, Project("my_bots.support", requires="pyproject.toml", is_package=True))
    assert asked[-1] == "install --no-cache-dir --no-deps ."


@pytest.mark.parametrize("place", [".env", "bots/sales/.env"])
def test_an_image_with_secrets_is_not_built(folder: Path, place: str) -> None:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("KEY=secret\n")
    with pytest.raises(AssertionError, match=rf"error: \./{place} must not be in an image"):
        build(folder, Project("bot.py"))
    # Of Docker's rules the last one that fits counts: https://docs.docker.com/build/concepts/context/#syntax
    ignored = [each for each in dockerignore().splitlines() if ".env" in each]
    assert ignored == ["**/.env", "**/.env.*", "!**/.env.example"]


def test_an_environment_called_dot_env_is_no_secret(folder: Path) -> None:
    (folder / ".env").mkdir()
    (folder / ".env.example").write_text("KEY=\n")
    build(folder, Project("bot.py"))


@pytest.mark.parametrize("bot", ["bot.py", 'my "bots"/ü $X.py:other'])
def test_the_process_gets_signals_itself(bot: str) -> None:
    (command,) = [
        arguments for name, arguments in steps(dockerfile(Project(bot), path="a b/Dockerfile")) if name == "CMD"
    ]
    assert json.loads(command) == ["wsvoice", "run", "--host=0.0.0.0", bot]


def test_its_user_is_that_of_the_manifest() -> None:
    text = dockerfile(Project("bot.py"), path="Dockerfile")
    assert "useradd --uid 10001 " in text
    assert "\nUSER 10001\n" in text
    assert text.index("USER") > text.rindex("RUN ")
