"""``wsvoice init``: a new bot's project, from a template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from wsvoice.cli import completion
from wsvoice.cli.options import PROJECT, SERVICES, option
from wsvoice.cli.output import Output
from wsvoice.cli.signals import interrupted_by_signals
from wsvoice.errors import UsageError

if TYPE_CHECKING:
    from wsvoice.scaffold import Plan, Template

T = TypeVar("T")


def _service(name: str, what: str) -> Any:
    help = f"{what}, where the template has a choice."
    return option(f"--{name} NAME", help, SERVICES, completion.choice(name))


def init(
    directory: Annotated[
        str | None, typer.Argument(metavar="DIR", help="The project's folder, and so its name.  [default: my-bot]")
    ] = None,
    template: Annotated[
        str | None, option("--template NAME", "What to start from.  [default: echo]", PROJECT, completion.templates)
    ] = None,
    transport: Annotated[
        list[str] | None,
        option("-t, --transport NAME", "The provider. Repeatable.  [default: twilio]", PROJECT, completion.providers),
    ] = None,
    stt: Annotated[str | None, _service("stt", "Speech to text")] = None,
    llm: Annotated[str | None, _service("llm", "The language model")] = None,
    tts: Annotated[str | None, _service("tts", "Text to speech")] = None,
    listing: Annotated[bool, option("--list", "List the templates and their choices; write nothing.")] = False,
    dry_run: Annotated[bool, option("--dry-run", "Print the files and their sizes; write nothing.")] = False,
    force: Annotated[bool, option("--force", "Overwrite files that already exist.")] = False,
    as_json: Annotated[
        bool, option("--json", "Print one JSON object: dir, template, providers, choices, files, next.")
    ] = False,
) -> None:
    """
    Start a bot's project from a template.

    The project runs, and passes its own tests, as it is. On a terminal and without
    arguments wsvoice asks for everything; Enter takes the default.

    \b
    wsvoice init                                      answer questions
    wsvoice init my-bot --template ivr -t telnyx
    wsvoice init --list
    """
    from wsvoice import scaffold

    output = Output()
    templates = scaffold.load_templates()
    if listing:
        show_templates(output, templates, as_json=as_json)
        return

    chosen = {name: value for name, value in (("stt", stt), ("llm", llm), ("tts", tts)) if value is not None}
    requirement = scaffold.own_requirement()
    nothing_given = directory is None and not (template or transport or chosen or dry_run or force or as_json)
    if nothing_given and output.can_ask:
        made = ask(output, templates, requirement)
    else:
        folder = scaffold.DEFAULT_NAME if directory is None else directory
        made = scaffold.plan(folder, template, transport or (), chosen, templates=templates, requirement=requirement)

    with interrupted_by_signals():
        scaffold.write(made, overwrite=force, dry_run=dry_run)
    if dry_run:
        output.tree(str(made.folder), [(path, f"{len(content):,} bytes") for path, content in made.files.items()])
    commands = scaffold.next_commands(made)
    if as_json:
        output.data(
            {
                "dir": str(made.folder),
                "template": made.template.name,
                "providers": list(made.providers),
                "choices": dict(made.chosen),
                "files": [{"path": path, "bytes": len(content)} for path, content in made.files.items()],
                "next": commands,
            }
        )
    if not dry_run:
        output.line(
            f"created {made.folder} from the template {made.template.name}: {made.template.description}", style="bold"
        )
        output.line("Next:")
        for command in commands:
            output.line(f"  {command}", style="cyan")
        if " @ " in requirement:
            origin = requirement.partition(" @ ")[2]
            output.note(f"wsvoice is installed from {origin}; README.md says how to take the project elsewhere")
            if clone := scaffold.own_editable_folder():
                output.note(f"installing it replaces your editable wsvoice; `pip install -e {clone}` brings it back")
        if made.env:
            output.note(f"a call needs {', '.join(made.env)}: copy .env.example to .env, and fill it in")


def show_templates(output: Output, templates: Mapping[str, Template], *, as_json: bool) -> None:
    """List the templates and their choices."""
    if as_json:
        listed = [
            {
                "name": each.name,
                "description": each.description,
                "choices": {
                    name: {"default": each.defaults[name], "options": list(choice.options)}
                    for name, choice in each.choices.items()
                },
            }
            for each in templates.values()
        ]
        output.data({"templates": listed})
        return
    rows: list[tuple[str, str]] = []
    for each in templates.values():
        rows.append((each.name, each.description))
        rows += [(f"  --{name}", " ".join(choice.options)) for name, choice in each.choices.items()]
    output.fields(rows)


def ask(output: Output, templates: Mapping[str, Template], requirement: str) -> Plan:
    """Ask for what was not given on the command line."""
    from wsvoice.providers import PROVIDERS
    from wsvoice.scaffold import DEFAULT_NAME, pick, plan, project_folder

    def answer(question: str, default: str, read: Callable[[str], T]) -> T:
        while True:
            try:
                return read(output.ask(question, default=default))
            except UsageError as error:
                output.failure(error)
            except EOFError:
                output.line()
                raise typer.Abort from None

    def read_providers(text: str) -> list[str]:
        return [pick("provider", name, PROVIDERS) for name in text.replace(",", " ").split()]

    folder = answer("Folder", DEFAULT_NAME, lambda text: project_folder(Path(text).expanduser()))
    show_templates(output, templates, as_json=False)
    template = templates[answer("Template", next(iter(templates)), lambda text: pick("template", text, templates))]
    chosen = {}
    for name, choice in template.choices.items():
        known = ", ".join(choice.options)
        chosen[name] = answer(
            f"{choice.help.rstrip('.')} ({known})",
            template.defaults[name],
            lambda text, name=name, choice=choice: pick(name, text, choice.options),  # type: ignore[misc]
        )
    providers = answer(f"Providers ({', '.join(PROVIDERS)})", next(iter(PROVIDERS)), read_providers)
    return plan(folder, template.name, providers, chosen, templates=templates, requirement=requirement)
