"""
pipecat's development runner, for a bot that is measured.

When a call ends, its serializer asks Twilio's REST API to hang up, with credentials that are made up: here it does not,
for nothing of a benchmark may leave this machine.
"""

from pipecat.runner.run import main
from pipecat.serializers.twilio import TwilioFrameSerializer


def serve() -> None:
    """Serve the bot of the program that was started, as its arguments say."""

    async def hang_up_nothing(self):
        pass

    TwilioFrameSerializer._hang_up_call = hang_up_nothing
    main()
