"""Why a call had no audio: what its provider recorded, and what a recording of wsvoice's own holds, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsvoice.audio import AUDIBLE_LEVEL, rms
from wsvoice.call import ENDED_STAGES
from wsvoice.doctor.codes import page_of
from wsvoice.errors import ApiError, AudioFileError
from wsvoice.phone.client import carry_out
from wsvoice.providers.account import Account, CallState, Evidence

#: A call that was answered and over so soon had a bot that did not stay, in seconds.
SHORT_CALL_S = 2.0
#: How long the pieces of a recording are whose level is looked at, in seconds.
_PIECE_S = 0.1
#: How much of a recording is looked at, in seconds.
_LISTEN_S = 600.0

#: What the stages of an ended call mean for its audio, and what to look at.
_ENDS = {
    "busy": ("nobody spoke: the line was busy", "try again later"),
    "no-answer": ("nobody spoke: the call was not answered in time", "let it ring longer: --timeout"),
    "canceled": ("nobody spoke: the call was canceled before it was answered", ""),
    "failed": ("nobody spoke: the provider could not connect the call", "look at the number, and the account's limits"),
}


@dataclass(frozen=True, slots=True)
class Heard:
    """
    What is in a recording.

    Attributes:
        file: Its path.
        duration_s: How long it is.
        caller_s, bot_s: When each of them was first heard; ``None`` if never.
    """

    file: str
    duration_s: float
    caller_s: float | None
    bot_s: float | None


@dataclass(frozen=True, slots=True)
class CallStory:
    """
    A call, told from what is known of it.

    Attributes:
        provider: As in ``wsvoice run -t NAME``.
        call_id: The provider's id of the call.
        state: How it stands; ``None`` where the API does not say.
        evidence: What the provider recorded, oldest first.
        recordings: What wsvoice recorded.
        why: Why there was no audio, the likeliest first, each with what mends it; empty if nothing is known to be
            wrong.
        notes: What could not be found out.
    """

    provider: str
    call_id: str
    state: CallState | None = None
    evidence: Sequence[Evidence] = ()
    recordings: Sequence[Heard] = ()
    why: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        state = self.state
        return {
            "provider": self.provider,
            "call_id": self.call_id,
            "state": None
            if state is None
            else {
                "stage": state.stage,
                "answered_by": state.answered_by,
                "duration_s": state.duration_s,
                "price": state.price or None,
                "cause": state.cause or None,
                "from": state.from_number or None,
                "to": state.to_number or None,
            },
            "evidence": [
                {
                    "when": each.when or None,
                    "what": each.what,
                    "code": each.code or None,
                    "failed": each.failed,
                    "hint": each.hint or None,
                }
                for each in self.evidence
            ],
            "recordings": [
                {"file": each.file, "duration_s": each.duration_s, "caller_s": each.caller_s, "bot_s": each.bot_s}
                for each in self.recordings
            ],
            "why": [{"message": message, "hint": hint or None} for message, hint in self.why],
            "notes": list(self.notes),
        }


async def tell(account: Account, call_id: str, recordings: Path | None) -> CallStory:
    """
    Return what is known of a call.

    Args:
        recordings: The folder of wsvoice's own recordings.

    Raises:
        ApiError: If there is no such call, or the provider does not take the credentials.
    """
    notes: list[str] = []
    state: CallState | None = None
    evidence: list[Evidence] = []
    try:
        state = await carry_out(account.look_up(call_id))
    except ApiError as error:
        if error.kind != "unsupported":
            raise
        notes.append(error.message)
    try:
        evidence = [explained(account, each) for each in await carry_out(account.evidence(call_id))]
    except ApiError as error:
        # The call itself is known; what was recorded of it may be kept from these credentials.
        notes.append(error.message)
    heard = [listen(each) for each in recordings_of(recordings, call_id)]
    why = [*_from_evidence(account, evidence), *_from_recordings(heard)] or _from_state(account, state)
    return CallStory(account.name, call_id, state, evidence, heard, why, notes)


def explained(account: Account, evidence: Evidence) -> Evidence:
    """Return `evidence` with what its code means, where it does not say so itself."""
    known = account.explain_code(evidence.code) if evidence.code else None
    if known is None:
        return evidence
    meaning, hint = known
    what = evidence.what if meaning.lower() in evidence.what.lower() else f"{evidence.what} ({meaning})"
    return Evidence(what, evidence.when, evidence.code, evidence.failed, evidence.hint or hint)


def _from_evidence(account: Account, evidence: Sequence[Evidence]) -> list[tuple[str, str]]:
    """Return what went wrong, oldest first: what came later mostly follows from it."""
    found: dict[str, str] = {}
    for each in evidence:
        if each.failed:
            at = f"{shown_time(each.when)}: " if each.when else ""
            code = f"{account.title} {each.code}: " if each.code and each.code not in each.what else ""
            hint = each.hint or (page_of(account, each.code) if each.code else "")
            found.setdefault(f"{at}{code}{each.what}", hint)
    return list(found.items())


def _from_recordings(heard: Sequence[Heard]) -> list[tuple[str, str]]:
    found = []
    for each in heard:
        if each.bot_s is None and each.caller_s is None:
            text = f"neither the caller nor the bot was heard in {each.duration_s:.1f} s ({each.file})"
            found.append((text, "`wsvoice doctor` tries both directions in a test call"))
        elif each.bot_s is None:
            text = f"the bot was never heard in {each.duration_s:.1f} s, and the caller was ({each.file})"
            found.append(
                (text, "look at the server's log of this call; `wsvoice dial bot.py` calls the bot without a phone")
            )
        elif each.caller_s is None:
            text = f"the caller was never heard in {each.duration_s:.1f} s, and the bot was ({each.file})"
            found.append((text, "ask for both directions of audio in the stream, as `wsvoice run` does"))
    return found


def _from_state(account: Account, state: CallState | None) -> list[tuple[str, str]]:
    """Return what a call's end alone explains."""
    if state is None:
        return []
    if state.stage in _ENDS:
        message, hint = _ENDS[state.stage]
        cause = f" ({state.cause})" if state.cause else ""
        return [(f"{message}{cause}", hint)]
    if state.stage in ENDED_STAGES and state.duration_s is not None and state.duration_s < SHORT_CALL_S:
        text = f"the call was over after {state.duration_s:g} s: the bot's stream ended, or the answer opened none"
        return [(text, f"`wsvoice doctor -t {account.name}` looks at webhook, stream and bot")]
    if state.stage not in ENDED_STAGES:
        return [(f"the call is not over yet: {state.stage}", "ask again once it is")]
    return []


def shown_time(when: str) -> str:
    """Return the time of day of a time stamp in ISO 8601 or RFC 2822, where that can be told; else all of it."""
    match = re.search(r"(?<!\d)\d\d:\d\d:\d\d", when)
    return match[0] if match else when


def recordings_of(folder: Path | None, call_id: str) -> list[Path]:
    """Return wsvoice's recordings of a call, which have its id in their names."""
    if folder is None or not folder.is_dir():
        return []
    safe_id = re.sub(r"[^A-Za-z0-9_-]", "_", call_id)[:80]
    return sorted(each for each in folder.glob("*.wav") if f"-{safe_id}" in each.stem)


def listen(file: Path) -> Heard:
    """
    Return who is heard in a recording of wsvoice's, whose left channel is the caller.

    Raises:
        AudioFileError: If it cannot be read.
    """
    import soundfile

    first: list[float | None] = [None, None]
    try:
        with soundfile.SoundFile(file) as sound:
            rate = sound.samplerate
            duration_s = len(sound) / rate
            for number, block in enumerate(sound.blocks(round(rate * _PIECE_S), dtype="int16", always_2d=True)):
                at_s = number * _PIECE_S
                if at_s > _LISTEN_S or None not in first:
                    break
                for side in range(min(2, block.shape[1])):
                    if first[side] is None and rms(block[:, side].tobytes()) >= AUDIBLE_LEVEL:
                        first[side] = round(at_s, 1)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioFileError(f"the recording {file} cannot be read: {error}") from error
    return Heard(str(file), round(duration_s, 2), first[0], first[1])
