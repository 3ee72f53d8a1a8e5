"""
Many test calls at once: what a bot's server makes of them, and how many it takes.

:func:`wsvoice.dial.load.run.place_calls` places them. Callers live in worker processes. What they say is made before
each call, and what they hear is read after it: while a call goes on, no JSON, no codec and no WebSocket library runs.
"""

from __future__ import annotations
