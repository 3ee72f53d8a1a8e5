"""Templates as they lie, and projects that are written whole or not at all."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
import wave
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import check, tool
from tests.providers.companies import load_provider
from wsvoice.errors import ScaffoldError, UsageError
from wsvoice.providers import PROVIDERS
from wsvoice.scaffold import (
    MANIFEST,
    Plan,
    load_templates,
    next_commands,
    own_editable_folder,
    own_requirement,
    plan,
    project_folder,
    templates_folder,
    write,
)
from wsvoice.scenarios.loading import read_scenario

ROOT = Path(__file__).parents[1]
TEMPLATES = load_templates()
#: What a project of a template has, whatever its bot does.
FILES = {
    ".env.example",
    ".github/workflows/test.yml",
    ".gitignore",
    "Dockerfile",
    "README.md",
    "bot.py",
    "pyproject.toml",
    "tests/test_bot.py",
}
WORKFLOW = ".github/workflows/test.yml"


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return everything in a folder: what is in the files, where the links point, and ``None`` for the folders."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(path.readlink())
        elif path.is_dir():
            found[f"{name}/"] = None
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Plan]:
    """Plan a project from a template of the test's own."""
    template = tmp_path / "templates" / "small"
    (template / "tests" / "deep").mkdir(parents=True)
    (template / "tests" / "__pycache__").mkdir()
    (template / MANIFEST).write_text(
        'description = "a small one"\n'
        "order = 1\n"
        "[choices.llm]\n"
        'help = "The model."\n'
        "[choices.llm.options]\n"
        'acme = { extra = "acme", env = ["ACME_KEY"] }\n'
        'other = { extra = "one", env = ["OTHER_KEY", "OTHER_URL"] }\n'
        "[choices.tts]\n"
        'help = "The voice."\n'
        "[choices.tts.options]\n"
        'acme = { extra = "acme", env = ["ACME_KEY"] }\n'
    )
    (template / "bot.py").write_text('"wsvoice-small-template"\nLLM = "acme"\nPROVIDERS = ["twilio"]\n')
    (template / ".env").write_text("SECRET=1\n")
    (template / ".env.example").write_text("# Twilio\nTWILIO_AUTH_TOKEN=\n# llm: acme\nACME_KEY=\n")
    (template / "pyproject.toml").write_text(
        '"pipecat-ai[acme]"\n  "wsvoice",\ntransport = "twilio"\nwsvoice run bot.py -t twilio -x a.b\n'
    )
    (template / "sound.wav").write_bytes(b"RIFF\0wsvoice-small-template")
    (template / "latin.txt").write_bytes("wsvoice-small-template é".encode("latin-1"))
    (template / "tests" / "deep" / "test_bot.py").write_text("pass\n")
    (template / "tests" / "__pycache__" / "test_bot.pyc").write_bytes(b"\0")

    def make(folder: Path, **options: object) -> Plan:
        return plan(folder, templates=load_templates(tmp_path / "templates"), **options)  # type: ignore[arg-type]

    return make


SMALL_FILES = {
    ".env.example",
    "bot.py",
    "latin.txt",
    "pyproject.toml",
    "sound.wav",
    "tests/",
    "tests/deep/",
    "tests/deep/test_bot.py",
}


# -- The templates --


def test_the_templates_are_found_in_their_order() -> None:
    assert templates_folder() == ROOT / "templates"
    assert list(TEMPLATES)[:2] == ["echo", "ivr"]
    folders = {path.name for path in templates_folder().iterdir() if path.is_dir() and (path / "bot.py").exists()}
    assert set(TEMPLATES) == folders


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_its_own_scaffold_with_the_defaults(name: str, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    made = plan(tmp_path / template.placeholder, name)
    for path, content in made.files.items():
        assert content == (template.folder / path).read_bytes(), path


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_a_whole_project(name: str) -> None:
    template = TEMPLATES[name]
    paths = {path for path, _ in template.files()}
    assert paths >= FILES
    assert MANIFEST not in paths
    project = tomllib.loads((template.folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == template.placeholder
    assert any(re.match(r"wsvoice\b", each) for each in project["dependencies"])
    # About one screen.
    assert len((template.folder / "README.md").read_text().splitlines()) <= 53
    assert max(len(source.read_bytes()) for _, source in template.files()) < 60 * 1024


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_text_that_depends_on_a_choice_is_in_a_template(name: str, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    chosen = {choice: list(each.options)[-1] for choice, each in template.choices.items()}
    made = plan(tmp_path / "my-bot", name, ["telnyx"], chosen, requirement="wsvoice>=9")
    texts = {path: content.decode() for path, content in made.files.items() if b"\0" not in content}
    for path, text in [
        ("pyproject.toml", 'name = "my-bot"'),
        ("pyproject.toml", '  "wsvoice>=9",'),
        ("pyproject.toml", 'transport = "telnyx"'),
        ("README.md", "--wheel-dir wheels 'wsvoice>=9'"),
        ("README.md", "wsvoice run bot.py -t telnyx"),
        ("Dockerfile", "wsvoice run bot.py -t telnyx"),
        ("tests/test_bot.py", 'PROVIDERS = ["telnyx"]'),
        (".env.example", "# Telnyx\nTELNYX_PUBLIC_KEY="),
        *(("services.py", f'{choice.upper()} = "{option}"') for choice, option in chosen.items()),
        *((".env.example", f"{variable}=") for variable in made.env),
    ]:
        assert text in texts[path]
    assert len(template.description) <= 80
    assert all(choice.help.endswith(".") for choice in template.choices.values())


@pytest.mark.parametrize(
    ("name", "provider"),
    [(name, each) for name, template in TEMPLATES.items() for each in PROVIDERS if each not in template.not_for],
)
def test_a_project_names_its_provider_and_no_other(name: str, provider: str, tmp_path: Path) -> None:
    write(plan(tmp_path / "my-bot", name, [provider]))
    folder = tmp_path / "my-bot"
    env = (folder / ".env.example").read_text()
    assert f"\n{load_provider(provider).credential_names[0]}=\n" in env
    for other in PROVIDERS:
        assert (f"{other.upper()}_" in env) == (other == provider)
    readme = (folder / "README.md").read_text()
    assert f"wsvoice run bot.py -t {provider}" in readme
    # An exchange of one's own has no company, no number and no address on the internet.
    is_own = not load_provider(provider).has_webhook
    assert bool(re.search("company|ngrok|my.domain", readme)) is not is_own
    assert readme.count("\n## ") == 4
    assert f'PROVIDERS = ["{provider}"]' in (folder / "tests" / "test_bot.py").read_text()
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-bot"
    assert project["tool"]["wsvoice"]["dial"]["transport"] == provider
    for path, content in contents(folder).items():
        assert TEMPLATES[name].placeholder.encode() not in (content or b""), path


@pytest.mark.parametrize(
    ("name", "choice", "option"),
    [
        (template.name, choice, option)
        for template in TEMPLATES.values()
        for choice in template.choices
        for option in template.choices[choice].options
    ],
)
def test_every_option_of_every_choice_makes_valid_python(name: str, choice: str, option: str, tmp_path: Path) -> None:
    made = plan(tmp_path / "my-bot", name, chosen={choice: option})
    needed = TEMPLATES[name].choices[choice].options[option]
    assert set(needed.env) <= set(made.env)
    files = made.files
    for path, content in files.items():
        if path.endswith(".py"):
            compile(content, path, "exec")
    for variable in needed.env:
        assert f"\n{variable}=" in files[".env.example"].decode()
    requirements = tomllib.loads(files["pyproject.toml"].decode())["project"]["dependencies"]
    [extras] = [re.findall(r"[\w-]+", found[1]) for each in requirements if (found := re.search(r"\[(.*)\]", each))]
    assert needed.extra in extras


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["echo", "ivr"])
def test_a_bot_passes_strict_type_checks(name: str) -> None:
    pytest.importorskip("mypy")
    # The project's own options, for others would throw its cache away each time.
    options = ["--no-error-summary", "--no-color-output"]
    files = sorted(path.name for path in TEMPLATES[name].folder.glob("*.py"))
    result = subprocess.run(
        [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'pyproject.toml'}", *options, *files],
        cwd=TEMPLATES[name].folder,
        env={**os.environ, "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_menus_prompts_are_what_the_bot_speaks() -> None:
    folder = TEMPLATES["ivr"].folder
    bot = (folder / "bot.py").read_text()
    for path in sorted((folder / "prompts").iterdir()):
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
            assert 0.5 < file.getnframes() / 8000 < 4
        assert f'"{path.stem}"' in bot


# -- Their scenarios, and what CI does with them --


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("providers", [["telnyx"], ["plivo", "asterisk"]])
def test_a_project_has_a_scenario_for_its_providers(name: str, providers: list[str], tmp_path: Path) -> None:
    write(plan(tmp_path / "my-bot", name, providers))
    [path] = (tmp_path / "my-bot").rglob("*.call.toml")
    assert path.parent.name == "tests"
    text = path.read_text("utf-8")
    assert text.startswith("#:schema call.schema.json\n")
    assert "wsvoice show" in text
    scenario = read_scenario(path).scenario
    assert scenario.providers == tuple(providers)
    assert (path.parents[1] / scenario.called).is_file()
    for file in [each.audio for each in scenario.steps if each.audio] + list(scenario.steps[0].heard or ()):
        assert (path.parent / file).is_file() or (path.parents[1] / file).is_file(), file
    # What runs it is installed with the project.
    project = tomllib.loads((tmp_path / "my-bot" / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["dev"] == ["wsvoice[test]"]
    assert project["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_workflow_keeps_the_traces_of_calls_that_failed(name: str) -> None:
    path = TEMPLATES[name].folder / WORKFLOW
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", path)

    steps = yaml.safe_load(path.read_text())["jobs"]["test"]["steps"]
    [tests] = [step["run"] for step in steps if step.get("run", "").startswith("pytest")]
    options = shlex.split(tests)
    folder = options[options.index("--calls-traces") + 1]
    [upload] = [step for step in steps if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert upload["if"] == "always()"
    kept = upload["with"]["path"].split()
    assert f"{folder}/" in kept
    assert options[options.index("--junitxml") + 1] in kept
    # What CI writes is not for git.
    assert set(kept) <= set((TEMPLATES[name].folder / ".gitignore").read_text().splitlines())


# -- Where wsvoice is from --


class Installed(importlib.metadata.Distribution):
    """wsvoice 1.2.3, installed from what the metadata's ``direct_url.json`` says."""

    def __init__(self, origin: dict[str, object] | None) -> None:
        self.origin = origin

    def read_text(self, filename: str) -> str | None:
        texts = {"METADATA": "Metadata-Version: 2.1\nName: wsvoice\nVersion: 1.2.3\n"}
        if self.origin is not None:
            texts["direct_url.json"] = json.dumps(self.origin)
        return texts.get(filename)

    def locate_file(self, path: object) -> Path:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (None, "wsvoice>=1.2.3"),
        ({"url": ROOT.as_uri(), "dir_info": {"editable": True}}, f"wsvoice @ {ROOT.as_uri()}"),
        ({"url": f"{ROOT.as_uri()}/README.md", "archive_info": {}}, f"wsvoice @ {ROOT.as_uri()}/README.md"),
        # A wheel of a CI job, say: it is gone, and what is installed has to do.
        ({"url": "file:///gone/wsvoice-1.2.3-py3-none-any.whl", "archive_info": {}}, "wsvoice>=1.2.3"),
        (
            {"url": "https://git.example/ws.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "wsvoice @ git+https://git.example/ws.git@abc123",
        ),
        (
            {"url": "https://git.example/a.git", "vcs_info": {"vcs": "git", "commit_id": "1f"}, "subdirectory": "ws"},
            "wsvoice @ git+https://git.example/a.git@1f#subdirectory=ws",
        ),
        (
            {"url": "https://dl.example/wsvoice-1.2.3-py3-none-any.whl", "archive_info": {}},
            "wsvoice @ https://dl.example/wsvoice-1.2.3-py3-none-any.whl",
        ),
    ],
)
def test_a_project_has_wsvoice_from_where_it_was_installed(
    origin: dict[str, object] | None, requirement: str, tmp_path: Path
) -> None:
    assert own_requirement(Installed(origin)) == requirement
    for name in TEMPLATES:
        write(plan(tmp_path / name / "my-bot", name, requirement=requirement))
        project = tomllib.loads((tmp_path / name / "my-bot" / "pyproject.toml").read_text())["project"]
        assert [each for each in project["dependencies"] if each.startswith("wsvoice")] == [requirement]
        assert f"--wheel-dir wheels '{requirement}'" in (tmp_path / name / "my-bot" / "README.md").read_text()


def shell_of_the_dockerfile(text: str) -> str:
    """Return what the Dockerfile runs to install what the bot needs."""
    [command] = re.findall(r"^RUN (wheels=(?:.*\\\n)*.*)$", text, re.M)
    return str(command)


def shell_of_the_workflow(text: str) -> str:
    """Return what the workflow runs to install the project."""
    [command] = re.findall(r"- run: \|\n((?: {10}.*\n)+)", text)
    return textwrap.dedent(command)


@pytest.mark.skipif(shutil.which("sh") is None, reason="a POSIX shell")
@pytest.mark.parametrize("with_wheel", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_wheel_takes_the_place_of_an_address_that_leads_nowhere(name: str, with_wheel: bool, tmp_path: Path) -> None:
    requirement = "wsvoice @ file:///nowhere/at/all"
    for place, source, shell in [
        ("image", "Dockerfile", shell_of_the_dockerfile),
        ("runner", ".github/workflows/test.yml", shell_of_the_workflow),
    ]:
        project = tmp_path / place / "my-bot"
        write(plan(project, name, requirement=requirement))
        # The Dockerfile copies the wheels beside pyproject.toml.
        wheels = project if place == "image" else project / "wheels"
        if with_wheel:
            wheels.mkdir(exist_ok=True)
            (wheels / "wsvoice-1.2.3-py3-none-any.whl").write_text("")
        bin_ = tmp_path / "bin"
        bin_.mkdir(exist_ok=True)
        (bin_ / "pip").write_text('#!/bin/sh\necho "$@"\n')
        (bin_ / "pip").chmod(0o755)
        done = subprocess.run(
            ["sh", "-ec", shell((project / source).read_text())],
            cwd=project,
            env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        asked = done.stdout.split()
        assert ([each for each in asked if each.endswith(".whl")] != []) is with_wheel
        assert asked[-1] in (".", ".[dev]")
        dependencies = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
        assert ("wsvoice" in dependencies) is with_wheel
        assert (requirement in dependencies) is not with_wheel


# -- What is planned --


def test_a_project_holds_what_was_chosen(small: Callable[..., Plan], tmp_path: Path) -> None:
    made = small(tmp_path / "My-Bot.2", providers=["telnyx", "exotel", "telnyx"], chosen={"llm": "other"})
    assert made.files["bot.py"] == b'"My-Bot.2"\nLLM = "other"\nPROVIDERS = ["telnyx", "exotel"]\n'
    assert made.files[".env.example"].decode() == (
        "# Telnyx\nTELNYX_PUBLIC_KEY=\n"
        "# Exotel\nEXOTEL_STREAM_USER=\nEXOTEL_STREAM_PASSWORD=\n"
        "# llm: other\nOTHER_KEY=\nOTHER_URL=\n# tts: acme\nACME_KEY=\n"
    )
    assert made.files["pyproject.toml"].decode() == (
        '"pipecat-ai[one,acme]"\n  "wsvoice",\ntransport = "telnyx"\nwsvoice run bot.py -x a.b\n'
    )
    assert made.providers == ["telnyx", "exotel"]
    assert made.env == ["OTHER_KEY", "OTHER_URL", "ACME_KEY"]


def test_the_defaults_are_the_first_of_each(small: Callable[..., Plan], tmp_path: Path) -> None:
    made = small(tmp_path / "my-bot")
    assert (made.template.name, made.providers, made.chosen) == ("small", ["twilio"], {"llm": "acme", "tts": "acme"})
    assert b"wsvoice run bot.py -t twilio " in made.files["pyproject.toml"]
    assert plan(tmp_path / "my-bot").template.name == "echo"


def test_what_is_no_text_stays_as_it_is_and_leftovers_stay_behind(small: Callable[..., Plan], tmp_path: Path) -> None:
    made = small(tmp_path / "my-bot")
    assert made.files["sound.wav"] == b"RIFF\0wsvoice-small-template"
    assert made.files["latin.txt"] == "my-bot é".encode("latin-1")
    assert set(made.files) == {path for path in SMALL_FILES if not path.endswith("/")}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"template": "smal"}, "no template is called 'smal'", "did you mean `small`? known are: small"),
        ({"template": "zzz"}, "no template is called 'zzz'", "known are: small"),
        ({"providers": ["twilio", "telnix"]}, "no provider is called 'telnix'", "did you mean `telnyx`?"),
        ({"chosen": {"llm": "acne"}}, "no llm is called 'acne'", "did you mean `acme`? known are: acme, other"),
        ({"chosen": {"stt": "acme"}}, "the template small has no choice --stt", "leave it out"),
    ],
)
def test_what_is_not_known_is_misuse(
    small: Callable[..., Plan], tmp_path: Path, options: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        small(tmp_path / "my-bot", **options)
    assert caught.value.message == message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_a_choice_of_another_template_names_that_template(tmp_path: Path) -> None:
    if "assistant" not in TEMPLATES:
        pytest.skip("there is no template with a choice")
    with pytest.raises(UsageError, match="the template echo has no choice --stt") as caught:
        plan(tmp_path / "my-bot", "echo", chosen={"stt": "deepgram"})
    assert caught.value.hint is not None
    assert "--template assistant" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("3bot!", "bot"),
        ("my bot", "my-bot"),
        ("-bot", "bot"),
        ("bot-", "bot"),
        ("Café", "Caf"),
        ("電話", "my-bot"),
        ("42", "my-bot"),
        ("a\nb", "a-b"),
        ("wsvoice", "my-wsvoice"),
        ("Pipecat_AI", "my-Pipecat_AI"),
    ],
)
def test_a_name_that_no_project_can_have_has_a_suggestion(name: str, better: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        project_folder(tmp_path / name)
    assert repr(name) in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f"`wsvoice init {tmp_path / better}`")
    assert project_folder(tmp_path / better) == tmp_path / better


@pytest.mark.parametrize("name", ["bot", "my-bot", "my_bot", "Bot2", "a.b", "class"])
def test_a_name_that_a_project_can_have(name: str, tmp_path: Path) -> None:
    assert project_folder(str(tmp_path / name)) == tmp_path / name


def test_the_name_is_the_folders_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "9").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for written in (".", "sub/.."):
        assert b'name = "here"' in plan(written).files["pyproject.toml"]
    monkeypatch.chdir(tmp_path / "9")
    with pytest.raises(UsageError) as caught:
        project_folder(Path())
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("`wsvoice init my-bot`")
    with pytest.raises(UsageError, match="is empty"):
        plan(" ")


def test_the_commands_to_run_next(small: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    install = "pip install -e '.[dev]'"
    assert next_commands(plan("my-bot")) == ["cd my-bot", install, "pytest && wsvoice dial bot.py"]
    assert next_commands(plan("a b/my-bot"))[0] == "cd 'a b/my-bot'"
    # A call needs keys, which the tests do not.
    assert next_commands(small(Path("my-bot"))) == ["cd my-bot", install, "pytest"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert next_commands(plan(".")) == [install, "pytest && wsvoice dial bot.py"]


# -- What is written --


def test_a_new_folder_and_its_parents_are_made(small: Callable[..., Plan], tmp_path: Path) -> None:
    made = small(tmp_path / "a" / "b" / "my-bot")
    write(made)
    assert set(contents(made.folder)) == SMALL_FILES
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["my-bot"]
    for path, content in made.files.items():
        assert (made.folder / path).read_bytes() == content


def test_a_folder_with_other_files_is_added_to(small: Callable[..., Plan], tmp_path: Path) -> None:
    folder = tmp_path / "my-bot"
    (folder / ".git").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "tests" / "mine.py").write_text("mine")
    inode = folder.stat().st_ino
    write(small(folder))
    assert set(contents(folder)) == SMALL_FILES | {".git/", "tests/mine.py"}
    # A shell that stands in it still does.
    assert folder.stat().st_ino == inode


def test_files_that_are_there_are_named_and_nothing_is_written(small: Callable[..., Plan], tmp_path: Path) -> None:
    folder = tmp_path / "my-bot"
    (folder / "tests" / "deep").mkdir(parents=True)
    (folder / "bot.py").write_text("mine")
    (folder / "tests" / "deep" / "test_bot.py").symlink_to("nowhere")
    before = contents(folder)
    for dry_run in (True, False):
        with pytest.raises(UsageError) as caught:
            write(small(folder), dry_run=dry_run)
        assert f"{folder}/bot.py and {folder}/tests/deep/test_bot.py already exist" == caught.value.message
        assert "--force" in (caught.value.hint or "")
    assert contents(folder) == before

    write(small(folder), overwrite=True)
    assert set(contents(folder)) == SMALL_FILES
    assert (folder / "bot.py").read_text() != "mine"
    # The link was replaced, and not what it points to.
    assert not (folder / "tests" / "deep" / "nowhere").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda at: (at / "my-bot").write_text("a file"), "{at}/my-bot is not a folder"),
        (lambda at: (at / "my-bot").symlink_to("nowhere"), "{at}/my-bot is not a folder"),
        (
            lambda at: (at / "my-bot" / "bot.py").mkdir(parents=True),
            "{at}/my-bot/bot.py is a folder",
        ),
        (
            lambda at: ((at / "my-bot").mkdir(), (at / "my-bot" / "tests").write_text("a file")),
            "{at}/my-bot/tests is not a folder",
        ),
        (
            lambda at: ((at / "my-bot").mkdir(), (at / "my-bot" / "tests").symlink_to(at / "nowhere")),
            "{at}/my-bot/tests is not a folder",
        ),
    ],
    ids=[
        "file",
        "link to nowhere",
        "folder in a file's place",
        "file in a folder's place",
        "folder is a link to nowhere",
    ],
)
def test_what_cannot_be_overwritten_is_in_the_way(
    small: Callable[..., Plan], tmp_path: Path, prepare: Callable[[Path], object], message: str, overwrite: bool
) -> None:
    prepare(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError) as caught:
        write(small(tmp_path / "my-bot"), overwrite=overwrite)
    assert caught.value.message == message.format(at=tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_inside_of_a_file_is_none(small: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text("a file")
    with pytest.raises(UsageError, match=r"bot\.py is not a folder"):
        write(small(tmp_path / "bot.py" / "my-bot"))


# -- Nothing half-written stays --


class Fails:
    """Stands in for a method of ``Path`` that works a few times, and then fails half-way."""

    def __init__(self, works: Callable[..., object], after: int, error: BaseException) -> None:
        self.calls = 0
        self._works, self._after, self._error = works, after, error

    def __get__(self, path: Path, _: object = None) -> Callable[..., object]:
        def call(argument: Path | bytes) -> object:
            self.calls += 1
            if self.calls <= self._after:
                return self._works(path, argument)
            if isinstance(argument, bytes):
                self._works(path, argument[: len(argument) // 2])
            raise self._error

        return call


FULL = OSError(errno.ENOSPC, "No space left on device")


def occupied(folder: Path) -> None:
    """Put into a folder what a project would overwrite, and what it would not."""
    (folder / "tests").mkdir(parents=True)
    (folder / "bot.py").write_text("mine")
    (folder / "tests" / "mine.py").write_text("mine as well")
    (folder / "pyproject.toml").symlink_to("elsewhere.toml")


@pytest.mark.parametrize(
    ("there", "method", "after"),
    [
        *((False, "write_bytes", n) for n in range(6)),
        *((False, "rename", n) for n in range(6)),
        *((True, "write_bytes", n) for n in range(6)),
        *((True, "rename", n) for n in range(8)),
    ],
)
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (FULL, ScaffoldError, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), ScaffoldError, "Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["full disk", "no permission", "interrupted"],
)
def test_what_goes_wrong_half_way_is_taken_back(
    small: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    method: str,
    after: int,
    error: BaseException,
    raised: type[BaseException],
    message: str | None,
) -> None:
    folder = tmp_path / "new" / "my-bot"
    if there:
        occupied(folder)
    made = small(folder)
    before = contents(tmp_path)
    failing = Fails(getattr(Path, method), after, error)
    monkeypatch.setattr(Path, method, failing)

    with pytest.raises(raised, match=message):
        write(made, overwrite=True)

    assert failing.calls == after + 1
    assert contents(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("there", [False, True], ids=["new folder", "its folder"])
def test_a_folder_that_may_not_be_written_to(small: Callable[..., Plan], tmp_path: Path, there: bool) -> None:
    locked = tmp_path / "locked"
    folder = locked if there else locked / "my-bot"
    locked.mkdir()
    made = small(folder)
    locked.chmod(0o500)
    try:
        with pytest.raises(ScaffoldError) as caught:
            write(made)
        assert caught.value.message == f"{folder} cannot be written: Permission denied"
        assert list(locked.iterdir()) == []
    finally:
        locked.chmod(0o700)


def test_a_name_that_is_too_long_for_the_disk(small: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match="too long"):
        write(small(tmp_path / ("a" * 300)))
    assert [path.name for path in tmp_path.iterdir()] == ["templates"]


def test_an_installation_without_templates_says_so(tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match="has no templates"):
        plan("my-bot", templates=load_templates(tmp_path))


def test_an_editable_wsvoice_is_named_for_a_shell() -> None:
    editable = {"url": "file:///srv/my%20clones/wsvoice", "dir_info": {"editable": True}}
    assert own_editable_folder(Installed(editable)) == "'/srv/my clones/wsvoice'"
    assert own_editable_folder(Installed(editable | {"dir_info": {}})) is None
    assert own_editable_folder(Installed(None)) is None
