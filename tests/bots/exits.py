"""The bot gives up while it is imported."""

import sys

sys.exit("ACME_API_KEY is not set")


async def bot(runner_args):
    pass
