"""The bot takes its whole process with it, as a crash in native code does."""

import os


async def bot(runner_args):
    os._exit(7)
