"""The bot fails before it has a pipeline."""


async def bot(runner_args):
    customer = {"+15550100002": "Ada"}[runner_args.call.from_number]
    print(f"hello {customer}")
