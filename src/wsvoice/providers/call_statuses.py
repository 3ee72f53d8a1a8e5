"""
The words for how far a call is and who answered it, as Twilio has them and those who repeat them: SignalWire, TeXML.

https://www.twilio.com/docs/voice/api/call-resource#call-status-values
https://www.twilio.com/docs/voice/answering-machine-detection#answeredby
"""

from __future__ import annotations

from collections.abc import Mapping

from wsvoice.call import ENDED_STAGES, AnsweredBy, Stage

#: What each status means. ``initiated`` is in callbacks what ``queued`` is in the API.
STAGES: Mapping[str, Stage] = {
    "queued": "queued",
    "initiated": "queued",
    "ringing": "ringing",
    "in-progress": "answered",
    "completed": "completed",
    "busy": "busy",
    "no-answer": "no-answer",
    "failed": "failed",
    "canceled": "canceled",
}
#: The status of each stage, in the API; callbacks say ``initiated`` for the first.
STATUSES: Mapping[Stage, str] = {stage: status for status, stage in STAGES.items() if status != "initiated"}
#: The statuses of a call that is over.
ENDED_STATUSES = frozenset(status for status, stage in STAGES.items() if stage in ENDED_STAGES)
#: What the SIP server of the called end says last, of a call that ends so.
SIP_CODES: Mapping[Stage, int] = {"completed": 200, "busy": 486, "no-answer": 487, "canceled": 487, "failed": 404}
#: The stages that a name in ``StatusCallbackEvent`` asks to be told of.
#: https://www.twilio.com/docs/voice/api/call-resource#statuscallbackevent
STATUS_EVENTS: Mapping[str, frozenset[Stage]] = {
    "initiated": frozenset({"queued"}),
    "ringing": frozenset({"ringing"}),
    "answered": frozenset({"answered"}),
    "completed": ENDED_STAGES,
}


def read_answered_by(word: str) -> AnsweredBy | None:
    """Return who answered, of a word such as ``machine_end_beep``; ``None`` if it says nothing of that."""
    kind = word.partition("_")[0]
    kinds: dict[str, AnsweredBy] = {"human": "human", "machine": "machine", "fax": "fax"}
    return kinds.get(kind, "unknown" if word in ("unknown", "not_sure", "silence") else None)


def read_greeting_end(word: str) -> bool:
    """Whether that word says that the machine's greeting has come to its end."""
    return word.startswith("machine_end")


def write_answered_by(answered_by: AnsweredBy, *, greeting_ended: bool = False) -> str:
    """Return the word for who answered."""
    if answered_by == "machine":
        return "machine_end_beep" if greeting_ended else "machine_start"
    return answered_by
