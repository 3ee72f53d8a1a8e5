"""``wsvoice deploy``: what is written where, from which settings, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.invoke import GOOD, invoke
from wsvoice.config import resolve_run
from wsvoice.config.values import usable_processors

K8S = ("deploy", "k8s", "-t", "twilio", "--image", "registry.example.com/bot:1.0", "--host", "bot.example.com")


@pytest.fixture(autouse=True)
def folder(clean_process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "My Bot"
    made.mkdir()
    (made / "bot.py").write_text(GOOD)
    monkeypatch.chdir(made)
    return made


def deployment(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(yaml.safe_load_all(invoke(*arguments).stdout)))
    return found


def command_of(found: dict[str, Any]) -> list[str]:
    command: list[str] = found["spec"]["template"]["spec"]["containers"][0]["command"]
    return command


def test_the_manifest_is_printed_and_nothing_is_written(folder: Path) -> None:
    found = deployment(*K8S)
    assert found["metadata"]["name"] == "my-bot"
    assert command_of(found)[-1] == "bot.py"
    assert [each.name for each in folder.iterdir()] == ["bot.py"]


def test_the_bots_own_settings_count(folder: Path) -> None:
    (folder / "voice.py").write_text(GOOD.replace("bot(", "agent("))
    (folder / "pyproject.toml").write_text(
        '[tool.wsvoice]\nbot = "voice.py:agent"\ntransport = "telnyx"\nmax-calls = 7\nproxy = "a.example.com"\n'
        'record = "calls"\n[tool.wsvoice.deploy]\nimage = "me/bot:2"\nlongest-call = "10m"\nautoscale = "keda"\n'
    )
    (folder / ".env").write_text("OPENAI_API_KEY=hush\nODD-NAME=hush\n")
    text = invoke("deploy", "k8s").stdout
    command = command_of(next(iter(yaml.safe_load_all(text))))
    assert command[-1] == "voice.py:agent"
    for option in ("transport=telnyx", "max-calls=7", "proxy=a.example.com", "max-call-time=10m", "record=/recordings"):
        assert f"--{option}" in command
    assert "kind: ScaledObject" in text
    # Names of secrets are there, and none of them.
    assert 'TELNYX_PUBLIC_KEY: "…"' in text
    assert 'OPENAI_API_KEY: "…"' in text
    assert "hush" not in text
    assert "--max-calls=3" in command_of(deployment("deploy", "k8s", "--calls-per-pod", "3"))


def test_no_limit_for_calls_is_one_on_a_machine_and_none_for_pods(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.wsvoice]\nmax-calls = 0\nmax-call-time = 0\n")
    # What adds pods has to know when one is full; and nobody can wait for a call that never ends.
    done = invoke(*K8S)
    assert {"--max-calls=100", "--max-call-time=1h"} <= set(command_of(next(iter(yaml.safe_load_all(done.stdout)))))
    where = "pyproject.toml [tool.wsvoice] max-calls"
    assert f"note: max-calls = 0, no limit ({where}), is not for pods" in done.stderr
    assert "max-calls" not in invoke(*K8S, "--calls-per-pod", "100").stderr
    invoke("deploy", "compose", "-t", "twilio", "--host", "bot.example.com")
    command = yaml.safe_load((folder / "deploy/compose.yaml").read_text())["services"]["bot"]["command"]
    assert {"--max-calls=0", "--max-call-time=1h", "--workers=auto"} <= set(command)


def test_a_setting_of_run_is_not_taken_for_one_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSVOICE_HOST", "0.0.0.0")
    said = invoke("deploy", "compose", "-t", "twilio", code=2).stderr
    assert said == "error: the public domain is missing\nhint:  add `--host bot.example.com`\n"


def test_a_folder_gets_everything(folder: Path) -> None:
    done = invoke(*K8S, "--autoscale", "hpa", "-o", "deploy")
    assert done.stdout == ""
    assert sorted(each.name for each in (folder / "deploy").iterdir()) == [
        "Dockerfile",
        "Dockerfile.dockerignore",
        "manifest.yaml",
        "prometheus-adapter-values.yaml",
    ]
    assert 'CMD ["wsvoice", "run", "--host=0.0.0.0", "bot.py"]' in (folder / "deploy/Dockerfile").read_text()


def test_a_file_gets_the_manifest_alone(folder: Path) -> None:
    invoke(*K8S, "-o", "out/all.yml")
    assert [each.name for each in (folder / "out").iterdir()] == ["all.yml"]


def test_files_are_not_overwritten_unasked(folder: Path) -> None:
    invoke(*K8S, "-o", "deploy")
    again = invoke(*K8S, "-o", "deploy").stderr
    assert again.splitlines()[:3] == [
        f"unchanged: deploy/{name}" for name in ("manifest.yaml", "Dockerfile", "Dockerfile.dockerignore")
    ]
    (folder / "deploy/Dockerfile").write_text("FROM mine\n")
    said = invoke(*K8S, "--min-pods", "3", "-o", "deploy", code=2).stderr
    assert said.startswith("error: deploy/manifest.yaml and deploy/Dockerfile already exist\n")
    assert (folder / "deploy/Dockerfile").read_text() == "FROM mine\n"
    invoke(*K8S, "--min-pods", "3", "-o", "deploy", "--force")
    assert (folder / "deploy/Dockerfile").read_text() != "FROM mine\n"


def test_compose_writes_a_folder(folder: Path) -> None:
    said = invoke("deploy", "compose", "-t", "twilio", "--host", "Bot.Example.com").stderr
    assert "note: compose.yaml reads .env, which is not there yet" in said
    names = {"compose.yaml", "Caddyfile", "Dockerfile", "Dockerfile.dockerignore"}
    assert {each.name for each in (folder / "deploy").iterdir()} == names
    found = yaml.safe_load((folder / "deploy/compose.yaml").read_text())
    assert found["services"]["bot"]["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}
    assert found["services"]["bot"]["env_file"] == ["../.env"]
    assert "\nbot.example.com {" in (folder / "deploy/Caddyfile").read_text()


def test_compose_may_write_into_the_projects_folder(folder: Path) -> None:
    invoke("deploy", "compose", "-t", "twilio", "--host", "bot.example.com", "-o", ".", "--max-calls", "5")
    found = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["bot"]
    assert found["build"] == {"context": ".", "dockerfile": "Dockerfile"}
    assert found["env_file"] == ["./.env"]
    assert "--max-calls=5" in found["command"]


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("--image", "Me/Bot"), "--image takes the reference of a container image, got 'Me/Bot'", "`--image me/bot`"),
        (("--image", "a b"), "--image takes the reference", "registry.example.com/voice/bot:1.0"),
        (("--image", "a/b:$(X)"), "--image takes the reference", "registry"),
        (("--host", "bot.example.com:8443"), "--host takes a domain without a port", "`--host bot.example.com`"),
        (("--host", "192.0.2.1"), "--host takes a public domain", "bot.example.com"),
        (("--host", "localhost"), "--host takes a public domain", "bot.example.com"),
        (("--host", "*.example.com"), "--host takes a domain", "bot.example.com"),
        (("--host", "a.b\n}\nx"), "--host takes text without control characters", "one line"),
        (("--name", "My Bot"), "--name takes small letters", "`my-bot`"),
        (("--name", "9lives"), "--name takes small letters", "`lives`"),
        (("--name", "a" * 41), "--name takes small letters, digits and hyphens that begin", "40 at most"),
        (("--name", "a\n  evil: true"), "--name takes text without control characters", "one line"),
        (("--namespace", "Voice_1"), "--namespace takes small letters", "`voice-1`"),
        (("--secret", "a_b"), "--secret takes small letters", "`a-b`"),
        (("--calls-per-pod", "0"), "--calls-per-pod takes a whole number from 1 up", "or 100"),
        (("--min-pods", "0"), "--min-pods takes a whole number from 1 up", "one pod is the least"),
        (("--longest-call", "0"), "--longest-call takes a duration from 1s to 24h", ""),
        (("--longest-call", "2d"), "--longest-call takes a duration", ""),
        (("--autoscale", "kedo"), "--autoscale takes keda, hpa or none", "did you mean `keda`?"),
        (("--prometheus", "prometheus:9090"), "--prometheus takes the http:// or https:// address", "http://"),
        (("--max-pods", "3"), "--max-pods is for --autoscale keda or hpa", "`--autoscale keda`"),
        (("--prometheus", "http://p:9090", "--autoscale", "hpa"), "--prometheus is for --autoscale keda", "keda"),
        (("-t", "websocket-client"), "-t websocket-client is for one client at a time", "`-t twilio`"),
        (("--autoscale", "hpa", "--min-pods", "11"), "--min-pods 11 is more than --max-pods 10", "`--max-pods 11`"),
        (("-o", "manifest.json"), "-o writes YAML", "`manifest.yaml`"),
        (("-t", "websocket-server"), "-t websocket-server is for one client at a time", "`-t twilio`"),
        (("nobot.py",), "there is no file nobot.py", "`bot.py`"),
        (("/etc/hosts.py",), "there is no file /etc/hosts.py", ""),
    ],
)
def test_what_cannot_be_used_is_refused_with_one_line(
    folder: Path, arguments: tuple[str, ...], error: str, hint: str
) -> None:
    replaced = [*K8S]
    if arguments[0] in replaced:
        replaced[replaced.index(arguments[0]) + 1] = arguments[1]
        arguments = ()
    done = invoke(*replaced, *arguments, code=2)
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"error: {error}")
    assert len(rest) <= 1
    assert hint in done.stderr
    assert [each.name for each in folder.iterdir()] == ["bot.py"]


def test_a_bot_elsewhere_cannot_be_in_the_image(folder: Path) -> None:
    (folder.parent / "other.py").write_text(GOOD)
    said = invoke(*K8S, "../other.py", code=2).stderr
    assert said.startswith("error: ../other.py is not in this folder, which becomes the image\n")


def test_an_image_is_needed() -> None:
    said = invoke("deploy", "k8s", "-t", "twilio", "--host", "bot.example.com", code=2).stderr
    assert said.startswith("error: the container image is missing\n")
    assert "with -o FOLDER there is a Dockerfile" in said


def test_all_that_is_missing_is_named_at_once() -> None:
    error, hint = invoke("deploy", "k8s", "-t", "twilio", code=2).stderr.splitlines()
    assert error == "error: the container image and the public domain are missing"
    assert "`--image registry.example.com/voice/bot:1.0 --host bot.example.com`" in hint


def test_without_autoscaling_the_most_pods_do_not_limit_the_fewest(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.wsvoice.deploy]\nmax-pods = 3\n")
    assert deployment(*K8S, "--min-pods", "4")["spec"]["replicas"] == 4


def test_a_bot_that_is_not_valid_python_is_a_warning(folder: Path) -> None:
    (folder / "bot.py").write_text("import os\nasync def bot(:\n")
    said = invoke(*K8S).stderr
    assert said == "warning: bot.py, line 2, is not valid Python: `wsvoice run bot.py --check` shows why\n"


@pytest.mark.parametrize("image", ["me/bot", "me/bot:latest", "registry.example.com:5000/bot"])
def test_an_image_that_may_change_is_a_warning(image: str) -> None:
    done = invoke("deploy", "k8s", "-t", "twilio", "--host", "bot.example.com", "--image", image)
    assert done.stderr.startswith(f"warning: {image} may be another image tomorrow")


def test_a_number_of_its_own_is_a_warning(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.wsvoice]\nnumber = "+15551234567"\nproxy = "bot.example.com"\n')
    said = invoke(*K8S, environ={"WSVOICE_TRANSPORT": "twilio"}).stderr
    assert said.startswith("warning: every process would point +15551234567 at itself")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(K8S, "each pod counts"), (("deploy", "compose", "-t", "twilio", "--host", "a.example.com"), "bot and bot-next")],
)
def test_a_limit_for_the_day_is_a_warning(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    (folder / "pyproject.toml").write_text("[tool.wsvoice]\nmax-minutes-per-day = 300\n")
    warning = invoke(*arguments).stderr.splitlines()[0]
    assert warning.startswith(f"warning: {said}")
    assert "300 (max-minutes-per-day)" in warning


def test_keda_is_told_whose_pods_count() -> None:
    assert "name theirs with --namespace" in invoke(*K8S, "--autoscale", "keda").stderr
    assert invoke(*K8S, "--autoscale", "keda", "--namespace", "voice").stderr == ""


def test_what_is_for_development_is_off(folder: Path) -> None:
    """The image has the pyproject.toml, and a pod has one process whatever that says."""
    settings = 'workers = 4\nreload = true\nlive = true\ntunnel = "ngrok"\n'
    (folder / "pyproject.toml").write_text(f"[tool.wsvoice]\n{settings}")
    (container,) = deployment(*K8S)["spec"]["template"]["spec"]["containers"]
    assert started(folder, container["command"], {each["name"]: each["value"] for each in container["env"]}) == 0
    invoke("deploy", "compose", "-t", "twilio", "--host", "bot.example.com")
    bot = yaml.safe_load((folder / "deploy/compose.yaml").read_text())["services"]["bot"]
    assert started(folder, bot["command"], bot["environment"]) == usable_processors()


def started(folder: Path, command: list[str], environ: dict[str, str]) -> int | None:
    """Return how many workers the command has, which is held against what must not be on."""
    _, _, *words = command
    flags = dict(each.removeprefix("--").split("=", 1) for each in words if each.startswith("--"))
    config = resolve_run(flags, environ=environ, cwd=folder).config
    assert (config.reload, config.live, config.tunnel) == (False, False, None)
    return config.workers


def test_a_command_of_another_name_is_meant() -> None:
    assert "did you mean `wsvoice deploy k8s`?" in invoke("deploy", "kubernetes", code=2).stderr
    assert "k8s" in invoke("deploy", code=2).stderr


def test_a_misspelt_setting_is_named(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.wsvoice.deploy]\nimages = "me/bot"\n')
    said = invoke(*K8S, code=2).stderr
    assert said.startswith(
        "error: pyproject.toml [tool.wsvoice.deploy] has no setting 'images'\nhint:  did you mean `image`?"
    )
