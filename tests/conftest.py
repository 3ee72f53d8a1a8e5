"""What all tests need of the process that they run in."""

from __future__ import annotations

import signal

# A shell starts background jobs with SIGINT ignored, and a process hands that on to those that it starts; the
# tests that press Ctrl-C need servers which listen to it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
