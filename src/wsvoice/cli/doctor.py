"""``wsvoice doctor``: what stands between a bot and its calls, why a call had no audio, what an error code means."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsvoice.cli import completion
from wsvoice.cli.options import CALLS, NETWORK, TRANSPORT, EnvFile, option
from wsvoice.cli.output import Output
from wsvoice.cli.signals import interrupted_by_signals, placing_calls
from wsvoice.config import TUNNELS, Resolved, RunConfig, parse_number, resolve_run
from wsvoice.errors import ConfigError

if TYPE_CHECKING:
    from wsvoice.doctor.call_story import CallStory
    from wsvoice.doctor.checkup import Examined, Result
    from wsvoice.doctor.subject import Subject

DEFAULTS = RunConfig()
#: What a template calls the file that is to be copied to ``.env``.
_EXAMPLES = (".env.example", "env.example", ".env.sample")


def doctor(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="BOT|CALL_ID",
            help=f"A bot as in `wsvoice run`, or a call's id.  [default: {DEFAULTS.bot}, if it is there]",
            show_default=False,
            autocompletion=completion.bots,
        ),
    ] = None,
    transport: Annotated[
        str | None,
        option(
            "-t, --transport NAME",
            "The provider.  [default: those whose credentials are set]",
            TRANSPORT,
            completion.providers,
        ),
    ] = None,
    number: Annotated[
        str | None,
        option("--number NUMBER", "Look where calls to this number go.  [default: TWILIO_FROM_NUMBER …]", CALLS),
    ] = None,
    code: Annotated[
        str | None, option("--code CODE", "Explain a provider's error code, such as 31920; check nothing.", CALLS)
    ] = None,
    no_call: Annotated[bool, option("--no-call", "Place no test call to the bot.", CALLS)] = False,
    proxy: Annotated[
        str | None,
        option("-x, --proxy DOMAIN", "The public domain.  [default: that of the server that runs here]", NETWORK),
    ] = None,
    tunnel: Annotated[
        str | None,
        option("--tunnel NAME|COMMAND", "Look whether a tunnel could be opened.", NETWORK, completion.one_of(*TUNNELS)),
    ] = None,
    host: Annotated[
        str | None,
        option(
            "--host ADDRESS",
            f"Where the server listens.  [default: {DEFAULTS.host}]",
            NETWORK,
            completion.one_of("localhost", "0.0.0.0"),
        ),
    ] = None,
    port: Annotated[str | None, option("--port PORT", f"On which port.  [default: {DEFAULTS.port}]", NETWORK)] = None,
    env_file: EnvFile = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only what is wrong, and the verdict.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """
    Find what stands between a bot and its calls.

    Looks at this machine, the settings, the bot, the provider's account, the number,
    the server, and the public address as a provider sees it, and places a test call.
    Each fault is named with what mends it. Exits with 0 if nothing failed.

    \b
    wsvoice doctor                            bot.py, and the server that runs here
    wsvoice doctor bot.py -t twilio -x bot.example.com --number +15551234567
    wsvoice doctor CA0123456789abcdef0123456789abcdef    why had it no audio?
    wsvoice doctor --code 31920               what does Twilio mean?

    It reads the settings of `wsvoice run`. Nothing at the provider is changed.
    """
    output = Output()
    flags = {name: value for name, value in context.params.items() if name not in ("target", "number")}
    if code is not None:
        _explain_code(output, code.strip(), _resolve(flags)[0], as_json=as_json)
        return
    call_id = _call_id(target)
    if call_id is None:
        flags["bot"] = target
    resolved, settings = _resolve(flags)
    if call_id is not None:
        _tell_call(output, call_id, resolved, as_json=as_json)
        return
    subject = _subject(resolved, number)
    bot = _bot(resolved, Path.cwd())
    examined = _examine(output, subject, settings, bot=bot, with_call=not no_call, quiet=quiet)

    from wsvoice.doctor.checkup import verdict

    failed = any(each.level == "fail" for each in examined)
    warned = any(each.level == "warn" for each in examined)
    if as_json:
        output.data({"verdict": "failed" if failed else "passed", "checks": [each.to_dict() for each in examined]})
    output.line(verdict(examined), style=f"bold {'red' if failed else 'yellow' if warned else 'green'}")
    if failed:
        raise typer.Exit(1)


def _resolve(flags: Mapping[str, Any]) -> tuple[Resolved[RunConfig], list[Result]]:
    """
    Return the settings, and what is wrong with them; with those that cannot be used left out.

    Raises:
        UsageError: If the command line itself is wrong.
    """
    from wsvoice.doctor.checkup import fail, ok, warn

    cwd = Path.cwd()
    # Where there are no files, and no environment, all that is wrong was typed just now.
    resolve_run(flags, environ={}, cwd=cwd / "nothing" / "here")
    faults: list[ConfigError] = []
    resolved = resolve_run(flags, environ=os.environ, cwd=cwd, faults=faults)
    found = [fail(each.message, each.hint) for each in faults]
    found += [warn(each, "correct it where it is set: in the environment, or in .env") for each in resolved.warnings]
    example = next((name for name in _EXAMPLES if (cwd / name).is_file()), None)
    if example is not None and resolved.env_file is None:
        found.append(warn(f"there is no .env, and {example} says what belongs into it", f"`cp {example} .env`"))
    read = f"{resolved.env_file.name} was read" if resolved.env_file else "there is no .env"
    return resolved, found or [ok(f"they can be used; {read}")]


def _call_id(target: str | None) -> str | None:
    """Return the id of a call, if that is what was named."""
    from wsvoice.phone.accounts import looks_like_a_call

    if target is None or Path(target).exists() or not looks_like_a_call(target):
        return None
    return target


def _bot(resolved: Resolved[RunConfig], cwd: Path) -> str | None:
    """Return the bot that is looked at; ``None`` if none was named and there is no file of the usual name."""
    bot = resolved.config.bot
    return bot if resolved.origins["bot"] != "default" or (cwd / bot).is_file() else None


def _subject(resolved: Resolved[RunConfig], number: str | None) -> Subject:
    """Return what is looked at; a :exc:`ConfigError` is raised if `number` is none."""
    from wsvoice.doctor.subject import Subject

    meant = parse_number(number, "--number") if number is not None else resolved.config.number
    return Subject(resolved.config, environ={**resolved.dotenv, **os.environ}, number=meant or "")


def _examine(
    output: Output,
    subject: Subject,
    settings: Sequence[Result],
    *,
    bot: str | None,
    with_call: bool,
    quiet: bool,
) -> list[Examined]:
    """Make all checks, and print each as soon as it is done."""
    from wsvoice import isolation
    from wsvoice.doctor.checks import checks
    from wsvoice.doctor.checkup import examine

    async def run() -> list[Examined]:
        await subject.find_server()
        made = checks(subject, settings, bot=bot, with_call=with_call)
        return await examine(made, on_examined=lambda each: output.examined(each, quiet=quiet))

    with placing_calls(output, "Looking at everything that a call needs", lambda: None), interrupted_by_signals():
        return isolation.run_interruptibly(run())


def _explain_code(output: Output, code: str, resolved: Resolved[RunConfig], *, as_json: bool) -> None:
    """Print what an error code means; an unknown one ends with 1."""
    from wsvoice.doctor import codes

    provider, credentials = _provider(resolved), resolved.config.credentials
    found = codes.explain(code, provider, credentials)
    others = [] if found else codes.near(code, provider, credentials)
    links = [] if found else codes.pages(code, provider, others)
    if as_json:
        shown = [
            {name: getattr(each, name) or None for name in ("provider", "code", "meaning", "hint", "page")}
            for each in found
        ]
        pages = dict(links)
        output.data({"code": code, "explained": shown, "near": [each.code for each in others], "pages": pages})
    for each in found:
        output.line(each.meaning, label=f"{each.title} {each.code}: ", label_style="bold")
        output.hint(each.hint)
        if each.page:
            output.line(each.page, style="dim")
    if found:
        return
    output.error(_unknown(code, provider))
    for each in others:
        output.line(each.meaning, label=f"near it: {each.title} {each.code}: ")
    for title, page in links:
        output.line(page, label=f"{title}: ", label_style="bold")
    raise typer.Exit(1)


def _unknown(code: str, provider: str | None) -> str:
    from wsvoice.providers import PROVIDERS

    return f"{code} is no error code of {PROVIDERS[provider] if provider else 'any provider'}'s that wsvoice knows"


def _provider(resolved: Resolved[RunConfig]) -> str | None:
    """Return the provider that was chosen, if it is one that has calls."""
    from wsvoice.providers import PROVIDERS

    name = resolved.config.transport
    return name if name in PROVIDERS else None


def _tell_call(output: Output, call_id: str, resolved: Resolved[RunConfig], *, as_json: bool) -> None:
    """Print why a call had no audio."""
    from wsvoice import isolation
    from wsvoice.doctor.call_story import tell
    from wsvoice.phone.accounts import account_of_call

    config = resolved.config
    account = account_of_call(call_id, _provider(resolved), config.credentials)
    with placing_calls(output, f"Asking {account.title}", lambda: None), interrupted_by_signals():
        story = isolation.run_interruptibly(tell(account, call_id, config.record))
    if as_json:
        output.data(story.to_dict())
    show_story(output, account.title, story)


def show_story(output: Output, title: str, story: CallStory) -> None:
    """Print what is known of a call, and what it comes to."""
    from wsvoice.doctor.call_story import shown_time

    output.line(_describe_state(title, story), style="bold")
    for each in story.evidence:
        style = "yellow" if each.failed else ""
        output.line(each.what, label=f"  {shown_time(each.when):<10}", label_style="dim", style=style)
    for heard in story.recordings:
        who = [
            f"{name} from {at:g} s" for name, at in (("caller", heard.caller_s), ("bot", heard.bot_s)) if at is not None
        ]
        output.line(f"{heard.file}: {heard.duration_s:g} s, {', '.join(who) or 'silence'}", label="  recording ")
    for each_note in story.notes:
        output.note(each_note)
    if not story.why:
        output.line("nothing that was recorded of it went wrong", style="bold green")
    for message, hint in story.why:
        output.line(message, label="why: ", label_style="bold red")
        output.hint(hint)


def _describe_state(title: str, story: CallStory) -> str:
    state = story.state
    if state is None:
        return f"{title}'s call {story.call_id}"
    parts = [f"{title}'s call {story.call_id}: {state.stage}"]
    if state.duration_s is not None:
        parts.append(f"{state.duration_s:g} s long")
    if state.from_number or state.to_number:
        parts.append(f"from {state.from_number or 'somebody'} to {state.to_number or 'somebody'}")
    if state.answered_by:
        parts.append(f"answered by {state.answered_by}")
    parts += [each for each in (state.price, state.cause) if each]
    return ", ".join(parts)
