"""
The numbers of a deployment, each worked out from how long a call may last and how many there are at once.

A process that is asked to stop answers ``/readyz`` with 503, and takes calls until load balancers have noticed;
then its running ones finish. Whoever asks has to wait for the longest of them, or it is cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsvoice.config import CALLS_PER_WORKER

#: How long a process that is to stop goes on taking calls, until a load balancer has noticed and sends nobody any more.
LINGER_S = 10
#: How long after its webhook was answered a call's stream may begin.
ANNOUNCED_S = 15
#: How long a bot may go on working once its call has ended.
BOT_EXIT_S = 30
#: How long the process may take to end once the drain is over.
PROCESS_EXIT_S = 15

#: What share of a pod's calls the autoscaler aims at: the rest is for callers who ring before a new pod is there.
TARGET_SHARE = 0.6
#: For how long there must have been too many pods before one is taken away, and how often one may be.
SCALE_DOWN_AFTER_S, SCALE_DOWN_EVERY_S = 900, 300

#: How long a call may last.
LONGEST_CALL_S = 3600.0


@dataclass(frozen=True, slots=True)
class Sizing:
    """
    The numbers of a deployment.

    Attributes:
        calls: How many calls a process takes at once, 0 for no limit; ``None`` for wsvoice's own rule, which counts
            its workers.
        longest_call_s: How long a call may last; then the server ends it.
    """

    calls: int | None = CALLS_PER_WORKER
    longest_call_s: float = LONGEST_CALL_S

    @property
    def drain_s(self) -> int:
        """How long a process waits for its calls once it takes no more: for one that began as late as it could."""
        return ANNOUNCED_S + math.ceil(self.longest_call_s) + BOT_EXIT_S

    @property
    def grace_s(self) -> int:
        """How long a process that was asked to stop is left alone before it is killed."""
        return LINGER_S + self.drain_s + PROCESS_EXIT_S

    @property
    def why_grace(self) -> str:
        """What :attr:`grace_s` is made of, in two lines."""
        return (
            f"The longest call ({shown(self.longest_call_s)}), {LINGER_S} s in which it still takes calls,"
            f" {ANNOUNCED_S} s for a call whose stream has not come yet,\n{BOT_EXIT_S} s for a bot that works on after"
            f" its call, and {PROCESS_EXIT_S} s for the process to end."
        )

    @property
    def target_calls(self) -> int:
        """How many calls for each pod the autoscaler aims at."""
        return max(1, math.floor((self.calls or CALLS_PER_WORKER) * TARGET_SHARE))


def shown(seconds: float) -> str:
    """Return a duration as ``wsvoice run`` reads it, in the largest unit that fits: ``90s``, ``2m``, ``1h``."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length:g}{unit}"
    return f"{round(seconds, 3):g}s" if seconds < 1e6 else f"{round(seconds)}s"
