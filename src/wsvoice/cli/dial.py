"""``wsvoice dial``: call a bot, and judge how it did; or have a bot call a telephone."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from wsvoice.cli import completion
from wsvoice.cli.options import (
    CALLER,
    CALLS,
    LIMITS,
    MANY,
    REAL,
    REPLAYS,
    TRIALS,
    AllowPrivate,
    EnvFile,
    ForceWs,
    Param,
    Quirk,
    ToNumber,
    WebhookMethod,
    option,
)
from wsvoice.cli.output import LOG_LINES, Output
from wsvoice.cli.signals import interrupted_by_signals, placing_calls
from wsvoice.config import (
    TUNNELS,
    Detection,
    DialConfig,
    Ignored,
    RealCallConfig,
    Redact,
    Resolved,
    Voicemail,
    dials_number,
    resolve_dial,
    resolve_real_call,
)

if TYPE_CHECKING:
    from wsvoice.dial.report import CallReport, TimelineEvent
    from wsvoice.replay.comparison import Comparison
    from wsvoice.replay.replaying import Replay
    from wsvoice.trace import Trace

DEFAULTS = DialConfig()
REAL_DEFAULTS = RealCallConfig()


def dial(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="A webhook's http(s) URL, a stream's ws(s) URL, a bot as in `wsvoice run`, or a phone number."
            f"  [default: {DEFAULTS.target}]",
            show_default=False,
            autocompletion=completion.bots,
        ),
    ] = None,
    transport: Annotated[
        str | None,
        option(
            "-t, --transport NAME",
            "The provider to play, or whose account calls a phone number."
            f"  [default: {DEFAULTS.transport}; for a phone number the only one there is]",
            CALLS,
            completion.providers,
        ),
    ] = None,
    audio: Annotated[
        list[str] | None,
        option(
            "--audio FILE",
            "What the caller says, in WAV, FLAC, Ogg or MP3; `question` is built in. Repeatable: one file a turn."
            "  [default: question; of many callers, a sound of its own for each]",
            CALLER,
        ),
    ] = None,
    say: Annotated[
        list[str] | None,
        option("--say TEXT", "What the caller says after that. Repeatable. Needs `wsvoice[say]`.", CALLER),
    ] = None,
    voice: Annotated[
        str | None,
        option(
            "--voice NAME",
            f"Who says it: a language, such as es or en-gb, or a voice, such as en+f3.  [default: {DEFAULTS.voice}]",
            CALLER,
            completion.voices,
        ),
    ] = None,
    dtmf: Annotated[
        str | None, option("--dtmf KEYS", "Keys to press after that, such as 12#; w waits half a second.", CALLER)
    ] = None,
    from_: Annotated[
        str | None,
        option(
            "--from NUMBER",
            f"Who calls; to call a phone number, one of yours.  [default: {DEFAULTS.from_number}]",
            CALLS,
        ),
    ] = None,
    to: ToNumber = None,
    param: Param = None,
    duration: Annotated[
        str | None,
        option("--duration TIME", "Stay on the line this long.  [default: until it is done, 5 min at most]", LIMITS),
    ] = None,
    listen: Annotated[
        str | None,
        option("--listen TIME", f"How long the bot may speak first.  [default: {DEFAULTS.listen_s:g}s]", LIMITS),
    ] = None,
    response_timeout: Annotated[
        str | None,
        option(
            "--response-timeout TIME",
            f"How long to wait for an answer.  [default: {DEFAULTS.response_timeout_s:g}s]",
            LIMITS,
        ),
    ] = None,
    record: Annotated[str | None, option("--record FILE.wav", "Record the call: caller left, bot right.")] = None,
    trace: Annotated[
        str | None, option("--trace FILE.call", "Keep the call's trace: messages, sound, timeline, log, report.")
    ] = None,
    redact: Annotated[
        str | None,
        option(
            "--redact WHAT",
            "What the trace leaves out beside secrets: callers (numbers, parameters), or digits (that, and keys).",
            CALLS,
            completion.one_of(*get_args(Redact)),
        ),
    ] = None,
    open_: Annotated[
        bool | None, option("--open", "Show the call's page in your browser when it has ended, as `wsvoice show`.")
    ] = None,
    transcriber: Annotated[
        str | None,
        option(
            "--transcriber NAME",
            "Turn what both sides said into words: offline, openai, module:function, or a service's URL.",
        ),
    ] = None,
    transcriber_model: Annotated[
        str | None,
        option("--transcriber-model NAME", "The model that it uses, or the folder of one.  [default: its own choice]"),
    ] = None,
    language: Annotated[
        str | None, option("--language CODE", f"The language that it is told.  [default: {DEFAULTS.language}]")
    ] = None,
    force_ws: ForceWs = None,
    allow_private: AllowPrivate = None,
    method: WebhookMethod = None,
    caller: Annotated[
        str | None,
        option("--caller BOT", "A bot as the caller, for 30 s or --duration: two bots talk.", CALLER, completion.bots),
    ] = None,
    probe: Annotated[
        bool | None, option("--probe", "Also try an unsigned webhook, broken messages and an interruption.", TRIALS)
    ] = None,
    quirk: Quirk = None,
    replay: Annotated[
        str | None,
        option("--replay CALL", "Place the call of this trace again, and say what the bot does differently.", REPLAYS),
    ] = None,
    adaptive: Annotated[
        bool | None,
        option("--adaptive", "Wait for the bot before each turn, instead of speaking at the recorded times.", REPLAYS),
    ] = None,
    max_slower: Annotated[
        str | None,
        option(
            "--max-slower SHARE",
            "By how much of itself a wait may be longer; by 250 ms it always may."
            f"  [default: {DEFAULTS.max_slower:.0%}]",
            REPLAYS,
        ),
    ] = None,
    min_correlation: Annotated[
        str | None,
        option(
            "--min-correlation SHARE",
            f"How similar what the bot says has to be.  [default: {DEFAULTS.min_correlation:g}]",
            REPLAYS,
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        option(
            "--ignore WHAT",
            "What is not compared: waits, sound, keys, end or findings. Repeatable.",
            REPLAYS,
            completion.one_of(*get_args(Ignored)),
        ),
    ] = None,
    calls: Annotated[
        str | None, option("-n, --calls N", "Place so many calls at once, and say how the server held up.", MANY)
    ] = None,
    ramp: Annotated[
        str | None, option("--ramp RATE", "How many calls to begin, such as 5/s or 90/m.  [default: 5/s]", MANY)
    ] = None,
    concurrency: Annotated[
        str | None, option("--concurrency N", "How many calls may go on at the same time.  [default: all]", MANY)
    ] = None,
    find_knee: Annotated[
        bool | None,
        option(
            "--find-knee",
            "Look for the most calls at once that the server takes; -n is the most to try.  [default: 500]",
            MANY,
        ),
    ] = None,
    max_late: Annotated[
        str | None, option("--max-late TIME", "What an echo may take, there and back.  [default: 60ms]", MANY)
    ] = None,
    max_late_share: Annotated[
        str | None,
        option(
            "--max-late-share SHARE",
            "How much of the bot's audio may come too late.  [default: 1% with --find-knee, else any]",
            MANY,
        ),
    ] = None,
    bot: Annotated[
        str | None,
        option(
            "--bot BOT",
            "The bot that talks, served for this call.  [default: a server that runs on this machine]",
            REAL,
            completion.bots,
        ),
    ] = None,
    proxy: Annotated[str | None, option("-x, --proxy DOMAIN", "The public domain in front of that bot.", REAL)] = None,
    tunnel: Annotated[
        str | None,
        option("--tunnel NAME|COMMAND", "Or open a tunnel to it, as `wsvoice run`.", REAL, completion.one_of(*TUNNELS)),
    ] = None,
    tunnel_domain: Annotated[
        str | None, option("--tunnel-domain DOMAIN", "The domain that you have reserved at ngrok.", REAL)
    ] = None,
    server: Annotated[
        str | None, option("--server URL|PORT", "The server whose bot talks, if there are several.", REAL)
    ] = None,
    timeout: Annotated[
        str | None,
        option("--timeout TIME", f"How long it may ring.  [default: {REAL_DEFAULTS.ring_timeout_s:g}s]", REAL),
    ] = None,
    time_limit: Annotated[
        str | None, option("--time-limit TIME", "How long it may last.  [default: the provider's]", REAL)
    ] = None,
    voicemail: Annotated[
        str | None,
        option(
            "--voicemail WHAT",
            "If a machine answers: bot (it talks at once), leave (it talks after the greeting), or hang-up."
            f"  [default: {REAL_DEFAULTS.voicemail}]",
            REAL,
            completion.one_of(*get_args(Voicemail)),
        ),
    ] = None,
    detect: Annotated[
        str | None,
        option(
            "--detect WHAT",
            "Find out who answers, for which some providers charge: off, detect or greeting-end."
            "  [default: what --voicemail needs]",
            REAL,
            completion.one_of(*get_args(Detection)),
        ),
    ] = None,
    env_file: EnvFile = None,
    verbose: Annotated[
        bool, option("-v, --verbose", "Print every setting and where it comes from, and the bot's log.")
    ] = False,
    quiet: Annotated[bool, option("-q, --quiet", "Print the verdict, and warnings, only.")] = False,
    json: Annotated[bool | None, option("--json", "Print the report as one JSON object on stdout.")] = None,
) -> None:
    """
    Call a bot, and judge how it did; or call a phone number.

    A test call plays the whole provider: signed webhook, answer document, WebSocket, audio in
    real time, marks, keys and hang-up. Needs no account, no phone and no tunnel.
    Exits with 0 if a real call would have gone well, and with 1 if not: a bot that
    stays silent has failed.

    \b
    wsvoice dial                                  a server on localhost:7860
    wsvoice dial bot.py --audio hello.wav         serve the bot, then call it
    wsvoice dial https://bot.example.com/ --dtmf 12# --json
    wsvoice dial bot.py -n 50 --ramp 5/s          50 calls at once
    wsvoice dial bot.py --replay good.call        the call of a trace, again

    To a phone number a real call is placed, which costs money: from a number of
    yours, through your provider's account, with your bot on this end. Exits with
    0 if it was answered and ended normally.

    \b
    wsvoice dial +15551234567 -t twilio --from +15557654321 \\
        --bot bot.py --tunnel ngrok

    Times are seconds, or have a unit: 90, 500ms, 2m. An option may also be in
    the environment (WSVOICE_DIAL_TRANSPORT=twilio), in .env, or in pyproject.toml
    ([tool.wsvoice.dial] transport = "twilio").
    """
    output = Output()
    if quirk == ["list"]:
        list_quirks(output, context.params)
        return
    if dials_number(context.params, environ=os.environ, cwd=Path.cwd()):
        real = resolve_real_call(context.params, environ=os.environ, cwd=Path.cwd())
        prepare(context, output, real)

        from wsvoice.cli.dial_number import dial_number

        dial_number(output, real, os.environ, verbose=verbose, quiet=quiet)
        return
    resolved = resolve_dial(context.params, environ=os.environ, cwd=Path.cwd())
    prepare(context, output, resolved)
    config = resolved.config
    if config.calls is not None or config.find_knee:
        from wsvoice.cli.load import dial_many

        dial_many(output, config, verbose=verbose, quiet=quiet)
        return

    logs: dict[str, deque[str]] = {"log": deque(maxlen=LOG_LINES), "caller-log": deque(maxlen=LOG_LINES)}

    is_reported = False

    def show(event: TimelineEvent) -> None:
        if is_reported:
            return
        if event.kind in logs and not verbose:
            logs[event.kind].append(event.text)
        elif not quiet:
            output.event(event)

    def show_logs() -> None:
        for whose, lines in zip(("bot's", "caller's"), logs.values(), strict=True):
            if not quiet:
                output.last_lines(whose, lines)

    def show_report(report: CallReport, comparison: Comparison | None = None) -> None:
        nonlocal is_reported
        is_reported = True
        # One that is made for the page only is gone by the time that somebody looks for it.
        report = report if config.trace is not None else replace(report, trace=None)
        lines, data = report.to_lines(), report.to_dict()
        if comparison is not None:
            lines[-1:] = [*comparison.to_lines(), lines[-1]]
            data["replay"] = comparison.to_dict()
        if config.probe and not quiet:
            from wsvoice.dial.checks import explain

            *lines, verdict = lines
            lines += [*explain(found.id for found in report.findings), verdict]
        if comparison is not None and quiet:
            # The verdict has the first one only.
            for each in comparison.differences[1:]:
                output.line(f"different: {each}")
        output.result(lines, data if config.as_json else None, quiet=quiet)

    with ExitStack() as stack:
        recorded, config = stack.enter_context(recorded_call(resolved))
        traced = stack.enter_context(traced_call(config, os.environ, output, recorded=recorded))
        replaying: Replay | None = None
        if recorded is not None:
            from wsvoice.replay.replaying import Replay

            replaying = Replay(recorded, traced)
            # The report has them as notes.
            for text in replaying.plan.missing if quiet else ():
                output.warning(text)
        with placing_calls(output, f"On the line with {config.target}", show_logs):
            from wsvoice import isolation
            from wsvoice.dial.caller import dial as place_call

            if config.caller is not None:
                from wsvoice.runner.logs import configure_logging

                # The caller's bot runs in this process; its log must not hide the timeline.
                configure_logging("DEBUG" if verbose else "ERROR")

            # Ctrl-C cancels the call, which hangs up, and is raised here as KeyboardInterrupt.
            with interrupted_by_signals():
                # With -v, the last lines of the bot's log stand before the report; a comparison needs the whole call.
                on_passed = (lambda report: None) if verbose or replaying is not None else show_report
                if replaying is None:
                    call = place_call(traced, on_event=show, on_passed=on_passed)
                else:
                    speaker, timeouts = replaying.speaker, replaying.timeouts
                    call = place_call(traced, on_event=show, on_passed=on_passed, speaker=speaker, timeouts=timeouts)
                report = isolation.run_interruptibly(call)
        comparison = None
        if replaying is not None:
            report, comparison = replaying.judge(report)
        # The last output of a bot that died is in the failure already.
        if report.verdict != "passed" and "\n" not in (report.failure or ""):
            show_logs()
        if not is_reported:
            show_report(report, comparison)
    if report.verdict != "passed":
        raise typer.Exit(1)


@contextmanager
def recorded_call(resolved: Resolved[DialConfig]) -> Iterator[tuple[Trace | None, DialConfig]]:
    """
    Open the call that is to be placed again, if there is one, and tell how it is placed.

    Raises:
        TraceError: If it cannot be placed again, or is not of the provider that was asked for.
        UsageError: If the new call's trace or recording would take its place.
    """
    config = resolved.config
    if config.replay is None:
        yield None, config
        return
    from wsvoice.replay.plan import configure
    from wsvoice.trace import read_trace

    with read_trace(config.replay) as trace:
        given = {name for name, origin in resolved.origins.items() if origin.startswith("flag ")}
        yield trace, configure(trace, config, given)


@contextmanager
def traced_call(
    config: DialConfig, environ: Mapping[str, str], output: Output, *, recorded: Trace | None
) -> Iterator[DialConfig]:
    """
    Have the call of `config` traced, if its page is to be opened or it is compared, and show it once it has ended.

    Args:
        recorded: The call that it is compared with, and shown beside; ``None`` for none.
    """
    if not config.opens_page and recorded is None:
        yield config
        return
    from tempfile import TemporaryDirectory

    from wsvoice.cli.show import pages_folder, show_calls
    from wsvoice.trace import read_trace

    with ExitStack() as stack:
        path = config.trace
        if path is None:
            name = time.strftime("call-%Y%m%d-%H%M%S.call")
            where = pages_folder(environ) if config.opens_page else None
            folder = TemporaryDirectory(dir=where, prefix="call-", ignore_cleanup_errors=True)
            path = Path(stack.enter_context(folder)) / name
        yield replace(config, trace=path)
        # If the disk was full, the report says so.
        if config.opens_page and path.exists():
            calls = [stack.enter_context(read_trace(path))]
            show_calls([recorded, *calls] if recorded is not None else calls, path.stem, environ, output)


def prepare(context: typer.Context, output: Output, resolved: Resolved[DialConfig] | Resolved[RealCallConfig]) -> None:
    """Print what there is to say of the settings, and hand a ``.env`` that was named on to a bot that is served."""
    output.warnings(resolved)
    if context.params["verbose"] and not context.params["quiet"]:
        output.settings(resolved)
    if context.params["env_file"] is not None:
        os.environ["WSVOICE_ENV_FILE"] = str(resolved.env_file)


def list_quirks(output: Output, flags: Mapping[str, Any]) -> None:
    """Print the quirks of the provider that was chosen, or every provider's."""
    from wsvoice.dial.quirks import describe_quirks
    from wsvoice.providers import PROVIDERS, load_simulator

    listed = resolve_dial({**flags, "quirk": None}, environ=os.environ, cwd=Path.cwd())
    is_chosen = listed.origins["transport"] != "default"
    for name in [listed.config.transport] if is_chosen else PROVIDERS:
        provider = load_simulator(name)
        quirks = describe_quirks(provider)
        output.line(f"{provider.title}'s quirks:" if quirks else f"{provider.title} has no quirks")
        output.fields(quirks)
