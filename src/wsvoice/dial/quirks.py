"""
Quirks: ways in which the simulated carrier can be made to deviate from what it does by itself.

Which there are is a provider's to say. Those that concern how messages are spelt are carried out by its stream;
those of the caller's behaviour are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.config import did_you_mean
from wsvoice.dial.script import STEP_MS
from wsvoice.errors import UsageError
from wsvoice.providers import PROVIDERS, load_simulator
from wsvoice.providers.base import Simulator


@dataclass(frozen=True, slots=True)
class Behaviour:
    """
    What the caller does differently.

    Attributes:
        frame_ms: How much audio a media message holds.
        reorder: How likely a media message is to change places with the next one.
        start_delay_s: How long the stream's start waits after the socket has opened.
        silent: No media is sent at all.
        return_cleared_marks: Whether marks come back when their audio is cleared.
        leg_format: The format of the telephone network's leg, which a document that names no codec gets.
        by_commands: The webhook is only acknowledged, and the call answered through the provider's API.
    """

    frame_ms: int
    reorder: float = 0.0
    start_delay_s: float = 0.0
    silent: bool = False
    return_cleared_marks: bool = True
    leg_format: AudioFormat | None = None
    by_commands: bool = False


def describe_quirks(provider: Simulator) -> list[tuple[str, str]]:
    """Return each quirk of `provider`'s as it is written, and what it changes, with its default."""
    return [
        (f"{name}={'|'.join(quirk.choices) or 'VALUE'}", f"{quirk.help} (default: {quirk.default})")
        for name, quirk in provider.quirks.items()
    ]


def read_behaviour(provider: Simulator, quirks: Mapping[str, str]) -> Behaviour:
    """
    Check `quirks`, and return what they ask of the caller.

    Raises:
        UsageError: If the provider has no such quirk, or the quirk no such value.
    """
    for name, value in quirks.items():
        _check(provider, name, value)
    values = {name: quirk.default for name, quirk in provider.quirks.items()} | dict(quirks)
    frame_ms = _number(values, "frame-ms", provider.frame_ms, most=1000)
    if frame_ms < STEP_MS or frame_ms % STEP_MS:
        raise UsageError(f"the quirk frame-ms takes a multiple of {STEP_MS}, got {frame_ms:g}")
    return Behaviour(
        frame_ms=int(frame_ms),
        reorder=_number(values, "reorder", 0.0, most=1.0),
        start_delay_s=_number(values, "start-delay", 0.0, most=3600.0),
        silent=values.get("silent") == "yes",
        return_cleared_marks=provider.cleared_marks == "returned" or values.get("echo-cleared-marks") == "yes",
        leg_format=AudioFormat(Encoding(values["leg-codec"])) if values.get("leg-codec") else None,
        by_commands=values.get("webhook") == "call-control",
    )


def _check(provider: Simulator, name: str, value: str) -> None:
    quirk = provider.quirks.get(name)
    if quirk is None:
        raise UsageError(f"{provider.title} has no quirk {name!r}", hint=_mend(provider, name))
    if quirk.choices and value not in quirk.choices:
        raise UsageError(
            f"the quirk {name} takes {' or '.join(quirk.choices)}, got {value!r}",
            hint=did_you_mean(value, quirk.choices),
        )


def _mend(provider: Simulator, name: str) -> str:
    """Say who has the quirk `name`, or what it may have meant."""
    if others := [each for each in PROVIDERS if name in load_simulator(each).quirks]:
        titles = " and ".join(load_simulator(each).title for each in others)
        return f"{titles} {'has' if len(others) == 1 else 'have'} it: dial with -t {' or -t '.join(others)}"
    if not provider.quirks:
        return "it has none; `wsvoice dial --quirk list` lists every provider's"
    if meant := did_you_mean(name, provider.quirks):
        return meant
    return f"known are: {'; '.join(f'{written} ({help})' for written, help in describe_quirks(provider))}"


def _number(values: Mapping[str, str], name: str, default: float, *, most: float) -> float:
    text = values.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise UsageError(f"the quirk {name} takes a number from 0 to {most:g}, got {text!r}")
    return number
