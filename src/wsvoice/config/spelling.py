"""What a misspelt word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def nearest(word: str, candidates: Iterable[str]) -> list[str]:
    """Return `candidates`, the ones spelt most like `word` first."""
    return sorted(
        candidates,
        key=lambda candidate: difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio(),
        reverse=True,
    )


def did_you_mean(word: str, candidates: Collection[str]) -> str | None:
    """Return a hint that names the candidate `word` was probably meant to be."""
    close = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None
