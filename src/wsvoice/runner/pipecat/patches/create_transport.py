"""``pipecat.runner.utils.create_transport`` returns the ready-made transport of a call."""

from __future__ import annotations

import pipecat.runner.utils


def apply() -> None:
    """Replace pipecat's function by wsvoice's function of the same name; bots import it by name."""
    from wsvoice.runner.pipecat.call_arguments import create_transport

    pipecat.runner.utils.create_transport = create_transport
