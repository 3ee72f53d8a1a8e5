"""
The simulated caller: everything a provider does to a bot, without a provider.

:func:`wsvoice.dial.caller.dial` places a call. It meets the server over sockets only, so that the two cannot
agree by construction.
"""

from __future__ import annotations

from wsvoice.dial.report import CallReport, SpokenWords, TimelineEvent, TurnReport

__all__ = ["CallReport", "SpokenWords", "TimelineEvent", "TurnReport"]
