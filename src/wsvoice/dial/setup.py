"""What the parts of one test call share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.clock import Clock
from wsvoice.dial.timeline import Timeline
from wsvoice.dial.timeouts import Timeouts
from wsvoice.providers.base import Behaviour, Command, Simulator


@dataclass(slots=True)
class CallSetup:
    """
    How a test call is placed, and what the bot has asked for since.

    Attributes:
        config: Whom to call, and what to say.
        serves_bot: Whether the bot is served for this call.
        provider: The company that is played.
        behaviour: How it deviates.
        timeline: Where events and findings go.
        clock: The clock of the call's media.
        timeouts: How long to wait for the other end.
        hung_up: Whether the bot has hung up, through the REST API or on the stream.
        update: The document that the bot wants the call to go on with; ``None`` once it does.
    """

    config: DialConfig
    serves_bot: bool
    provider: Simulator
    behaviour: Behaviour
    timeline: Timeline
    clock: Clock
    timeouts: Timeouts
    hung_up: bool = False
    update: Command | None = None

    def new_call(self) -> Call:
        """Return a call that nobody has placed yet."""
        config = self.config
        return self.provider.new_call(
            from_number=config.from_number,
            to_number=config.to_number,
            # A served bot's server puts them into its answer.
            parameters={} if self.serves_bot else config.parameters,
            seed=secrets.token_bytes(32),
        )
