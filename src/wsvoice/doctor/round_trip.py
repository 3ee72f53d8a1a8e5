"""A test call to the bot: audio there and back, without a telephone."""

from __future__ import annotations

from dataclasses import replace

from wsvoice.call import plural
from wsvoice.config import PLAIN_TRANSPORTS, DialConfig, resolve_dial
from wsvoice.dial.caller import dial
from wsvoice.dial.checks import CHECKS
from wsvoice.dial.report import CallReport, CountedFinding
from wsvoice.doctor.checkup import Result, fail, ok, skipped, warn
from wsvoice.doctor.subject import Subject
from wsvoice.providers.base import Finding

#: How long the whole call may take, in seconds: the bot is loaded for it first.
CALL_LIMIT_S = 100.0
#: What the call has in common with those of ``wsvoice dial``.
_AS_DIALLED = ("audio", "say", "voice", "dtmf", "parameters", "listen_s", "response_timeout_s", "force_ws")


async def look_at_audio(subject: Subject, bot: str | None) -> list[Result]:
    """
    Place a test call to `bot`, which is served for it; without one, to the server that runs on this machine.

    The caller says what the settings of ``wsvoice dial`` say.

    Raises:
        UsageError: If it cannot be placed.
    """
    if subject.config.transport in PLAIN_TRANSPORTS:
        return [skipped(f"-t {subject.config.transport} takes clients, not calls")]
    name = next(iter(subject.served()), "twilio")
    usual = resolve_dial({}, environ=subject.environ, cwd=subject.cwd).config
    config = DialConfig(
        transport=name,
        cwd=subject.cwd,
        environ=subject.environ,
        **{field: getattr(usual, field) for field in _AS_DIALLED},
    )
    if bot is not None:
        config = replace(config, target=bot)
    elif subject.server is not None and subject.server.providers:
        url = f"{subject.server.url.rstrip('/')}{subject.webhook_path(name)}"
        config = replace(config, target=url, credentials=subject.config.credentials)
    else:
        return [skipped("there is neither a bot nor a server for telephone calls on this machine")]
    return judge(await dial(config))


def result_of(finding: Finding | CountedFinding) -> Result:
    """Return what a test call found, with what mends it."""
    return Result(finding.level, f"{finding.id}: {finding.message}", CHECKS[finding.id].hint)


def judge(report: CallReport) -> list[Result]:
    """Return what a call's report comes to."""
    if report.failure is not None:
        first, *_ = report.failure.splitlines()
        return [fail(first, f"`wsvoice dial {report.target} -t {report.provider}` shows the whole call")]
    found = [result_of(each) for each in report.findings]
    if report.underruns:
        text = f"the bot's sound broke off {plural(report.underruns, 'time')}, because its audio came too late"
        found.append(warn(text, "look what else this machine does meanwhile; `wsvoice dial -v` shows the bot's log"))
    answers = [turn.response_ms for turn in report.turns if turn.response_ms]
    heard = "" if report.first_audio_ms is None else f"the bot was heard after {report.first_audio_ms / 1000:.1f} s"
    answered = f", and answered after {max(answers) / 1000:.1f} s" if answers else ""
    return found or [ok(f"{heard or 'the call went well'}{answered}, without underruns")]
