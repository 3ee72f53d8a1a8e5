"""
``--quirk``: ways in which a simulated provider can be made to deviate. Each provider defines its own.
"""

from __future__ import annotations

from dataclasses import replace

from wsvoice.config import did_you_mean
from wsvoice.dial.clock import STEP_MS
from wsvoice.errors import UsageError
from wsvoice.providers import PROVIDERS, load_simulator
from wsvoice.providers.base import Behaviour, Simulator


def describe_quirks(provider: Simulator) -> list[tuple[str, str]]:
    """Return each quirk of `provider` as it is written, and what it changes, with its default."""
    return [
        (f"{name}={'|'.join(quirk.choices) or 'VALUE'}", f"{quirk.help} (default: {quirk.default})")
        for name, quirk in provider.quirks.items()
    ]


def read_behaviour(provider: Simulator) -> Behaviour:
    """
    Check the quirks that were chosen, and return how the caller behaves with them.

    Raises:
        UsageError: If the provider has no such quirk, or the quirk no such value.
    """
    for name, value in provider.chosen_quirks.items():
        quirk = provider.quirks.get(name)
        if quirk is None:
            raise UsageError(f"{provider.title} has no quirk {name!r}", hint=_hint(provider, name))
        if quirk.choices and value not in quirk.choices:
            raise UsageError(
                f"the quirk {name} takes one of {', '.join(quirk.choices)}, got {value!r}",
                hint=did_you_mean(value, quirk.choices),
            )
    behaviour = provider.behaviour()
    if behaviour.frame_ms < STEP_MS or behaviour.frame_ms % STEP_MS:
        raise UsageError(f"the quirk frame-ms takes a multiple of {STEP_MS}, got {behaviour.frame_ms:g}")
    return replace(behaviour, frame_ms=int(behaviour.frame_ms))


def _hint(provider: Simulator, name: str) -> str:
    """Return a hint: which providers have the quirk `name`, or what was probably meant."""
    if others := [each for each in PROVIDERS if name in load_simulator(each).quirks]:
        titles = " and ".join(load_simulator(each).title for each in others)
        return f"{titles} {'has' if len(others) == 1 else 'have'} it: dial with -t {' or -t '.join(others)}"
    if not provider.quirks:
        return "it has none; `wsvoice dial --quirk list` lists every provider's"
    if meant := did_you_mean(name, provider.quirks):
        return meant
    return f"known are: {'; '.join(f'{written} ({help})' for written, help in describe_quirks(provider))}"
