"""
Until the key is there, the bot's model is the fake of fakes.py; then it is the real one.

`BOT_FAKES=1 pytest` stays with the fake.
"""

import os

os.environ["BOT_FAKES"] = os.environ.get("BOT_FAKES") or "auto"
