"""The bot is there, under a name that is nearly right."""


async def warm_up(runner_args):
    pass


async def bott(runner_args):
    pass


async def two(first, second):
    pass
