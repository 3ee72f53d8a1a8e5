"""Somebody forgot the `async`."""


def bot(runner_args):
    return None
