"""A bot as other frameworks would call it."""


async def bot(transport: object, context: object) -> None:
    pass
