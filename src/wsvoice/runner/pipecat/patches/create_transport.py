"""``pipecat.runner.utils.create_transport`` gives the ready-made transport of a call."""

from __future__ import annotations

import pipecat.runner.utils


def apply() -> None:
    """Put wsvoice's function of the same name in the place of pipecat's; bots import it from there by name."""
    from wsvoice.runner.pipecat.call_arguments import create_transport

    pipecat.runner.utils.create_transport = create_transport
