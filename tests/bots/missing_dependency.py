"""The bot needs a package that is not installed."""

import acme_speech_services.stt


async def bot(runner_args):
    acme_speech_services.stt.listen()
