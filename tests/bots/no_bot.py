"""A file with nothing in it that could be a bot."""

GREETING = "Hello."


def greet() -> str:
    return GREETING
