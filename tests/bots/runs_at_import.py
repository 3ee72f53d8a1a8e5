"""A bot without a main guard: importing it starts pipecat's own server."""

from pipecat.runner.run import main


async def bot(runner_args):
    pass


main()
