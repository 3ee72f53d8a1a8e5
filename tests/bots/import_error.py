"""The bot's own code fails while it is imported."""


def load_prompts():
    return {}["greeting"]


PROMPTS = load_prompts()


async def bot(runner_args):
    pass
