"""
A bot served in a second process for test calls, and the provider's REST API that it is told of.

Both have credentials that are made for these calls, so that no real ones are used.
"""

from __future__ import annotations

import os
import secrets
from contextlib import AsyncExitStack
from typing import Self

from wsvoice.dial.fake_api_server import FakeRestApi
from wsvoice.dial.served_bot import ServedBot, bot_environment
from wsvoice.dial.setup import CallSetup
from wsvoice.providers import load_simulator


class Serving:
    """
    A bot's process and its API, while the context lasts; the calls' provider gets the credentials that match.

    Attributes:
        api: The API; it knows no call yet.
        bot: The bot's process; :meth:`ready` waits until it can be called.
    """

    api: FakeRestApi
    bot: ServedBot

    def __init__(self, bot: str, setup: CallSetup) -> None:
        self._spec = bot
        self._setup = setup
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the API and the bot's process."""
        setup, config = self._setup, self._setup.config
        carriers, credentials = setup.provider.test_credentials(secrets.token_bytes(32))
        setup.provider = provider = load_simulator(config.transport, carriers, config.quirks)
        # The API checks the bot's credentials; the carrier has its own, to sign with.
        owner = load_simulator(provider.name, credentials, config.quirks)
        async with AsyncExitStack() as stack:
            self.api = await stack.enter_async_context(FakeRestApi(owner, setup.timeline))
            environ = bot_environment({**os.environ, **config.environ}, provider, credentials, self.api.url)
            self.bot = ServedBot(
                self._spec,
                provider.name,
                config.parameters,
                environ,
                cwd=config.cwd,
                on_line=lambda line: setup.timeline.add("log", line),
                start_timeout_s=setup.timeouts.start_s,
            )
            stack.push_async_callback(self.bot.stop)
            await self.bot.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop both, unless that was done."""
        await self.stop()

    async def stop(self) -> None:
        """Stop the process, then the API; a second time does nothing."""
        await self._stack.aclose()
