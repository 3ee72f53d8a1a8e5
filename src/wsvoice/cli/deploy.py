"""``wsvoice deploy``: the files with which Kubernetes or Docker Compose runs the bot."""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from wsvoice.cli import completion
from wsvoice.cli.help import Command, Group
from wsvoice.cli.options import CALLS, NETWORK, PODS, PROJECT, EnvFile, option
from wsvoice.cli.output import Output
from wsvoice.config import (
    CALLS_PER_WORKER,
    START_KEY,
    Autoscale,
    DeployConfig,
    Resolved,
    RunConfig,
    nearest_name,
    parse_public_name,
    parse_text,
    resolve_deploy,
    resolve_run,
)
from wsvoice.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from wsvoice.deploy.command import Service

DEFAULTS = DeployConfig()

Bot = Annotated[
    str | None,
    typer.Argument(
        metavar="BOT",
        help=f"The bot, as for `wsvoice run`.  [default: {RunConfig().bot}]",
        show_default=False,
        autocompletion=completion.bots,
    ),
]
Transport = Annotated[
    str | None,
    option(
        "-t, --transport NAME", "The provider, or websocket.  [default: the bot's own]", CALLS, completion.transports
    ),
]
Host = Annotated[str | None, option("--host DOMAIN", "The public domain.  [default: the bot's own proxy]", NETWORK)]
Name = Annotated[
    str | None, option("--name NAME", "What everything is called.  [default: the name of this folder]", PROJECT)
]
LongestCall = Annotated[
    str | None,
    option(
        "--longest-call TIME",
        "Calls are ended after that, and a process that is to stop has that time.  [default: the bot's own"
        " max-call-time, or 1h]",
        CALLS,
    ),
]
Force = Annotated[bool, option("--force", "Overwrite files that already exist.", PROJECT)]
Verbose = Annotated[bool, option("-v, --verbose", "Print every setting and where it comes from.")]


class Targets(Group):
    """The group of commands about deploying."""

    def meant(self, args: Sequence[str]) -> str | None:
        """Return a hint that names the command that was probably meant."""
        names = {"kubernetes": "k8s", "kube": "k8s", "docker": "compose", "docker-compose": "compose"}
        if args[0] in names:
            return f"did you mean `wsvoice deploy {names[args[0]]}`?"
        return super().meant(args)


deploy = typer.Typer(cls=Targets, rich_markup_mode=None)


@deploy.callback(invoke_without_command=True)
def about(context: typer.Context) -> None:
    """
    Write the files with which others run the bot: Kubernetes, or Docker Compose.

    They let running calls finish when the bot is replaced.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@deploy.command("k8s", cls=Command)
def k8s(
    context: typer.Context,
    bot: Bot = None,
    transport: Transport = None,
    image: Annotated[
        str | None, option("--image IMAGE", "The container image, as in registry.example.com/bot:1.0.", PROJECT)
    ] = None,
    host: Host = None,
    name: Name = None,
    namespace: Annotated[
        str | None, option("--namespace NAME", "The namespace.  [default: the one that kubectl uses]", PROJECT)
    ] = None,
    secret: Annotated[
        str | None,
        option("--secret NAME", "The Secret with the bot's environment variables.  [default: NAME-secrets]", PROJECT),
    ] = None,
    calls_per_pod: Annotated[
        str | None,
        option(
            "--calls-per-pod N",
            f"How many calls a pod takes at once.  [default: the bot's own max-calls, or {CALLS_PER_WORKER}]",
            PODS,
        ),
    ] = None,
    longest_call: LongestCall = None,
    autoscale: Annotated[
        str | None,
        option(
            "--autoscale keda|hpa|none",
            f"What adds and removes pods as calls come and go.  [default: {DEFAULTS.autoscale}]",
            PODS,
            completion.one_of(*get_args(Autoscale)),
        ),
    ] = None,
    prometheus: Annotated[
        str | None, option("--prometheus URL", f"Where KEDA finds it.  [default: {DEFAULTS.prometheus}]", PODS)
    ] = None,
    min_pods: Annotated[
        str | None, option("--min-pods N", f"How few pods there may be.  [default: {DEFAULTS.min_pods}]", PODS)
    ] = None,
    max_pods: Annotated[
        str | None, option("--max-pods N", f"How many pods there may be.  [default: {DEFAULTS.max_pods}]", PODS)
    ] = None,
    out: Annotated[
        str | None,
        option(
            "-o, --output PATH",
            "Write the manifest to this file; or into this folder, and a Dockerfile too.  [default: to stdout]",
            PROJECT,
        ),
    ] = None,
    force: Force = False,
    env_file: EnvFile = None,
    verbose: Verbose = False,
) -> None:
    """
    Write the manifest with which Kubernetes runs the bot.

    A pod that is replaced takes no new calls, and ends when its last call has.

    \b
    wsvoice deploy k8s -t twilio --image registry.example.com/bot:1.0 \\
        --host bot.example.com -o deploy
    """
    from wsvoice.deploy.kubernetes import Cluster, adapter_values, manifest

    output = Output()
    resolved, service = _resolve(context, output, verbose=verbose)
    config = resolved.config
    assert service.image is not None
    if re.search(r"(^|/)[^:@]+(:latest)?$", service.image):
        output.warning(f"{service.image} may be another image tomorrow: name a version, so that pods are of one")
    cluster = Cluster(
        secret=config.secret or f"{service.name}-secrets",
        namespace=config.namespace,
        autoscale=config.autoscale,
        min_pods=config.min_pods,
        max_pods=config.max_pods,
        prometheus=config.prometheus,
    )
    if cluster.autoscale == "keda" and cluster.namespace is None:
        output.warning(
            f"KEDA counts the calls of pods called {service.name}-… in every namespace; name theirs with --namespace"
        )
    text = manifest(service, cluster)
    if out is None or out == "-":
        output.text(text)
        return
    path = Path(parse_text(out, "-o")).expanduser()
    if path.suffix in (".yaml", ".yml", ".json"):
        if path.suffix == ".json":
            raise UsageError(f"-o writes YAML, got {path}", hint=f"use `{path.with_suffix('.yaml')}`")
        _write(output, path.parent, {path.name: text}, force=force)
    else:
        files = {"manifest.yaml": text, **_image_files(service, path)}
        if cluster.autoscale == "hpa":
            files["prometheus-adapter-values.yaml"] = adapter_values()
        _write(output, path, files, force=force)
    if cluster.autoscale == "none":
        output.note(f"there are always {cluster.min_pods} pods; --autoscale keda or hpa follows the calls")


@deploy.command("compose", cls=Command)
def compose(
    context: typer.Context,
    bot: Bot = None,
    transport: Transport = None,
    image: Annotated[
        str | None, option("--image IMAGE", "What to call the container image.  [default: NAME:latest]", PROJECT)
    ] = None,
    host: Host = None,
    name: Name = None,
    max_calls: Annotated[
        str | None,
        option(
            "--max-calls N",
            f"Turn callers away beyond N; 0 never does.  [default: the bot's own, or {CALLS_PER_WORKER} a processor]",
            CALLS,
        ),
    ] = None,
    longest_call: LongestCall = None,
    out: Annotated[str, option("-o, --output FOLDER", "Write the files into this folder.", PROJECT)] = "deploy",
    force: Force = False,
    env_file: EnvFile = None,
    verbose: Verbose = False,
) -> None:
    """
    Write the files with which Docker Compose runs the bot on one machine.

    compose.yaml, a Dockerfile, and a Caddyfile: Caddy has the certificate made,
    and renewed. The bot's secrets stay in .env.

    \b
    wsvoice deploy compose -t twilio --host bot.example.com
    """
    from wsvoice.deploy.compose import caddyfile, compose_file

    output = Output()
    _, service = _resolve(context, output, verbose=verbose, workers="auto")
    folder = Path(parse_text(out, "-o")).expanduser()
    if folder.suffix in (".yaml", ".yml"):
        raise UsageError(f"-o takes a folder, for there is more than one file: got {folder}", hint="use `-o deploy`")
    here = Path.cwd()
    root, inside = (Path(os.path.relpath(a, b)).as_posix() for a, b in ((here, folder), (folder, here)))
    files = {
        "compose.yaml": compose_file(service, root=root, folder=inside),
        "Caddyfile": caddyfile(service),
        **_image_files(service, folder),
    }
    _write(output, folder, files, force=force)
    if not (here / ".env").is_file():
        output.note("compose.yaml reads .env, which is not there yet; the first lines of the file say what it needs")


def _resolve(
    context: typer.Context, output: Output, *, verbose: bool, workers: str = "0"
) -> tuple[Resolved[DeployConfig], Service]:
    """
    Return where the bot is deployed, and what: its own settings say the rest.

    Kubernetes sees, counts and replaces each process by itself, so that a pod has one; a machine has its `workers`.
    """
    from wsvoice.deploy.command import Service
    from wsvoice.deploy.sizing import LONGEST_CALL_S, Sizing

    given = context.params
    resolved = resolve_deploy(given, environ=os.environ, cwd=Path.cwd())
    of_bot = {name: given.get(name) for name in ("bot", "transport", "max_calls", "env_file")}
    faults: list[ConfigError] = []
    run = resolve_run(of_bot, environ=os.environ, cwd=Path.cwd(), faults=faults)
    transport = run.config.transport
    if transport in ("websocket-server", "websocket-client"):
        # Before what else it would need is asked for.
        raise ConfigError(
            f"-t {transport} is for one client at a time, and nothing to deploy",
            hint="deploy a provider, such as `-t twilio`, or `-t websocket`",
        )
    if faults:
        raise faults[0]
    _check_missing(config=resolved.config, run=run.config, needs_image=context.info_name == "k8s")
    output.warnings(run)
    if verbose:
        output.settings(resolved)
        output.settings(run)
    config = resolved.config
    if run.config.number is not None:
        output.warning(
            f"every process would point {run.config.number} at itself: point it once, and leave --number out"
        )
    if run.config.max_minutes_per_day:
        how = "each pod counts the minutes of a day by itself, and begins with none"
        if workers != "0":
            how = "bot and bot-next count the minutes of a day by themselves"
        output.warning(f"{how}: together they take more than {run.config.max_minutes_per_day} (max-minutes-per-day)")
    # Somebody has to wait for the longest call: it cannot be without a limit. Plain clients' calls have none.
    longest_s = config.longest_call_s or run.config.max_call_time_s or LONGEST_CALL_S
    calls = run.config.max_calls
    if workers == "0":
        # What adds pods has to know when one is full.
        if calls == 0 and config.calls_per_pod is None:
            what = f"max-calls = 0, no limit ({run.origins['max-calls']}), is not for pods, which others have to count"
            output.note(f"{what}: each takes {CALLS_PER_WORKER} calls, unless --calls-per-pod says otherwise")
        calls = config.calls_per_pod or calls or CALLS_PER_WORKER
    bot = _bot_inside(run.config.bot)
    _warn_of_broken(output, run.config.bot)
    service = Service(
        bot=bot,
        name=config.name or nearest_name(Path.cwd().name) or "bot",
        host=_host(config, run.config),
        transport=transport,
        image=config.image,
        sizing=Sizing(calls, longest_s),
        workers=workers,
        records=run.config.record is not None,
        variables=_variables(run),
    )
    return resolved, service


def _check_missing(config: DeployConfig, run: RunConfig, *, needs_image: bool) -> None:
    """Raise :exc:`UsageError` that names all that is needed and was not given."""
    missing: dict[str, str] = {}
    if needs_image and config.image is None:
        missing["the container image"] = "--image registry.example.com/voice/bot:1.0"
    if config.host is None and run.proxy is None:
        missing["the public domain"] = "--host bot.example.com"
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        build = "; with -o FOLDER there is a Dockerfile for the image" if needs_image and config.image is None else ""
        raise UsageError(f"{' and '.join(missing)} {verb} missing", hint=f"add `{' '.join(missing.values())}`{build}")


def _host(config: DeployConfig, run: RunConfig) -> str:
    return config.host or parse_public_name(run.proxy, "the bot's proxy")


def _bot_inside(spec: str) -> str:
    """Return how the bot is named in the image, which is made of this folder."""
    from wsvoice.bot_loading import DEFAULT_FUNCTION, find_bot

    target, function, path = find_bot(spec)
    where = target
    if path is not None:
        here = Path.cwd().resolve()
        if not path.is_relative_to(here):
            hint = f"change to its folder first: `cd {path.parent}`"
            raise UsageError(f"{target} is not in this folder, which becomes the image", hint=hint)
        where = path.relative_to(here).as_posix()
    return where if function == DEFAULT_FUNCTION else f"{where}:{function}"


def _warn_of_broken(output: Output, spec: str) -> None:
    """Warn of a bot's file that is not valid Python; it is not run."""
    from wsvoice.bot_loading import find_bot

    target, _, path = find_bot(spec)
    try:
        if path is not None:
            with warnings.catch_warnings(action="ignore"):
                compile(path.read_bytes(), path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OSError) as error:
        line = f", line {error.lineno}," if isinstance(error, SyntaxError) and error.lineno else ""
        output.warning(
            f"{target}{line} is not valid Python: `{shlex.join(['wsvoice', 'run', spec, '--check'])}` shows why"
        )


def _variables(run: Resolved[RunConfig]) -> tuple[str, ...]:
    """Return the names of the variables that the bot needs: its provider's, and those of ``.env``."""
    from wsvoice.providers import PROVIDERS, load_company

    transport = run.config.transport
    names: list[str] = []
    if transport in PROVIDERS:
        names += load_company(transport).credential_names[:1]
    elif transport == "websocket":
        names.append(START_KEY)
    names += [name for name in run.dotenv if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
    return tuple(dict.fromkeys(names))


def _image_files(service: Service, folder: Path) -> dict[str, str]:
    """Return the Dockerfile and what belongs to it, by their names in `folder`."""
    from wsvoice.bot_loading import find_bot
    from wsvoice.deploy.image import Project, dockerfile, dockerignore
    from wsvoice.scaffold import requirements_file

    here = Path.cwd()
    requires = requirements_file(here)
    project = Project(
        bot=service.bot,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        requires=requires,
        is_package=requires == "pyproject.toml" and find_bot(service.bot)[2] is None,
    )
    path = Path(os.path.relpath(folder / "Dockerfile", here)).as_posix()
    return {"Dockerfile": dockerfile(project, path=path), "Dockerfile.dockerignore": dockerignore()}


def _write(output: Output, folder: Path, files: Mapping[str, str], *, force: bool) -> None:
    """Write `files` into `folder`, all of them or none, and say so; those that are there as they are stay."""
    from wsvoice.scaffold import write_files

    contents = {name: text.encode() for name, text in files.items()}
    new = {name: content for name, content in contents.items() if not _is_there(folder / name, content)}
    write_files(folder, new, overwrite=force)
    for name in files:
        output.line(f"{'wrote' if name in new else 'unchanged'}: {folder / name}")


def _is_there(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == content
    except OSError:
        return False
