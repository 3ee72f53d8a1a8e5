"""The callers' waits of earlier runs, in a file, and what has become worse since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsvoice.errors import UsageError
from wsvoice.scenarios.statistics import Growth, can_tell, compare_waits

#: The version of the file.
FORMAT = 1

#: Of each step, the waits in milliseconds, one for each call.
Waits = Mapping[str, list[float]]


def read_baseline(path: Path) -> dict[str, Waits]:
    """
    Return the waits of each scenario, by its name in pytest.

    Raises:
        UsageError: If the file is none of ours.
    """
    hint = "write one with `--save-baseline FILE`"
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be read: {error.strerror}", hint=hint) from None
    except ValueError:
        raise UsageError(f"the baseline {path} is not JSON", hint=hint) from None
    if not isinstance(content, dict) or not isinstance(content.get("scenarios"), dict):
        raise UsageError(f"{path} is no baseline", hint=hint)
    if content.get("format") != FORMAT:
        raise UsageError(f"the baseline {path} has the format {content.get('format')!r}, not {FORMAT}", hint=hint)
    try:
        return {
            str(name): {str(step): [float(each) for each in waits] for step, waits in steps.items()}
            for name, steps in content["scenarios"].items()
        }
    except (AttributeError, TypeError, ValueError):
        raise UsageError(f"{path} is no baseline: its waits are not numbers", hint=hint) from None


def check_files(compared: Path | None, saved: Path | None) -> None:
    """
    Check the files that waits are compared with and saved in, before any call is placed.

    Raises:
        UsageError: If one cannot be used.
    """
    if compared is not None:
        read_baseline(compared)
    if saved is not None and saved.exists():
        try:
            read_baseline(saved)
        except UsageError as error:
            message = f"--save-baseline would replace {saved}, which is no baseline"
            raise UsageError(message, hint="name another file") from error


def save_baseline(path: Path, scenarios: Mapping[str, Waits]) -> None:
    """
    Write the waits of each scenario; those of others that are in the file stay.

    Raises:
        UsageError: If it cannot be written.
    """
    known = read_baseline(path) if path.exists() else {}
    merged = {**known, **scenarios}
    rounded = {
        name: {step: [round(each, 1) for each in waits] for step, waits in merged[name].items()}
        for name in sorted(merged)
    }
    text = json.dumps({"format": FORMAT, "scenarios": rounded}, indent=1, ensure_ascii=False)
    try:
        path.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be written: {error.strerror}") from None


def compare(before: Waits | None, now: Waits, *, max_slower: float) -> tuple[list[Growth], list[str]]:
    """
    Return what has become worse, and what could not be told.

    Args:
        before: The scenario's earlier waits; ``None`` if there are none.
        now: Today's.
        max_slower: By how much of itself a percentile may grow.
    """
    if not before:
        return [], ["the baseline has no waits of this scenario: nothing was compared"]
    told = []
    if missing := [step for step in now if not before.get(step)]:
        told.append(f"the baseline has no waits of {', '.join(missing)}")
    shared = [step for step in now if before.get(step)]
    for step in shared:
        n_before, n_now = len(before[step]), len(now[step])
        if not can_tell(n_before, n_now, len(shared)):
            told.append(f"{step}: {n_before} waits before and {n_now} now are too few to compare; --repeat 10 has more")
    worse = [each for each in compare_waits(before, now, max_slower=max_slower) if each.is_worse]
    return worse, told
