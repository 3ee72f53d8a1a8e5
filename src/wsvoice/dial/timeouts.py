"""How long the simulated caller waits for the other end."""

from __future__ import annotations

from dataclasses import dataclass

from wsvoice.dial.checks import CONNECT_LIMIT_S, WEBHOOK_LIMIT_S, WEBHOOK_WARN_S
from wsvoice.dial.served_bot import START_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Timeouts:
    """
    How long the caller waits, as a provider does.

    Attributes:
        webhook_warn_s: A webhook that takes longer is a finding.
        webhook_s: A webhook that takes longer fails the call.
        connect_s: For the WebSocket to open.
        start_s: For a bot to be imported and served.
        probe_quiet_s: How long a probed stream is silent at its start: providers may take that long to set a call up.
        call_s: For a call without a duration of its own to be done: one that is not done by then never is.
        close_s: For the end of the closing handshake.
        backlog_s: How much audio may wait for a bot that does not read it.
        words_s: For a transcriber, beyond as long as what was said.
    """

    webhook_warn_s: float = WEBHOOK_WARN_S
    webhook_s: float = WEBHOOK_LIMIT_S
    connect_s: float = CONNECT_LIMIT_S
    start_s: float = START_TIMEOUT_S
    probe_quiet_s: float = 5.0
    call_s: float = 300.0
    close_s: float = 5.0
    backlog_s: float = 10.0
    words_s: float = 30.0
