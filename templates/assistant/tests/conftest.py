"""
Until every key is there, the bot's services are the fakes of fakes.py; then they are the real ones.

`BOT_FAKES=1 pytest` stays with the fakes.
"""

import os

os.environ["BOT_FAKES"] = os.environ.get("BOT_FAKES") or "auto"
