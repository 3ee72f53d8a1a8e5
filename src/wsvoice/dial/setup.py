"""What the parts of one test call share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.clock import Clock
from wsvoice.dial.report import KeyPress
from wsvoice.dial.timeline import Timeline
from wsvoice.dial.timeouts import Timeouts
from wsvoice.providers.base import Behaviour, Command, Simulator

if TYPE_CHECKING:
    from wsvoice.dial.call_trace import CallTrace
    from wsvoice.words import Transcribe

#: How many of the bot's key presses are remembered.
MAX_BOT_DIGITS = 1000


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
        trace: What writes the call's trace; ``None`` for none.
        transcribe: Who turns what was said into words; ``None`` for nobody.
        hung_up: Whether the bot has hung up, through the REST API or on the stream.
        bot_digits: What the bot has pressed.
        transferred_to: Whom it has had the call connected to; ``None`` for nobody.
        update: The document that the bot wants the call to go on with; ``None`` once it does.
    """

    config: DialConfig
    serves_bot: bool
    provider: Simulator
    behaviour: Behaviour
    timeline: Timeline
    clock: Clock
    timeouts: Timeouts
    trace: CallTrace | None = None
    transcribe: Transcribe | None = None
    hung_up: bool = False
    bot_digits: list[KeyPress] = field(default_factory=list)
    transferred_to: str | None = None
    update: Command | None = None

    def press(self, digits: str) -> None:
        """Note that the bot presses keys."""
        self.timeline.add("digit", f"the bot presses {digits[:60]}", who="bot", digit=digits[:60])
        # As many as any telephone system takes; the other end may send any number.
        if len(self.bot_digits) < MAX_BOT_DIGITS:
            self.bot_digits.append(KeyPress(self.timeline.now_ms(), digits[:60]))

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
