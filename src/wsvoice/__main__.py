"""
``python -m wsvoice``, and where the ``wsvoice`` command begins.

Its imports take a good part of a second; Ctrl-C in that time ends the process with one line, too.
"""

from __future__ import annotations

import os
import signal

#: The commands' exit code when they are interrupted.
INTERRUPTED = 130


def main() -> None:
    """Import the command line, and run it."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, _leave)
    from wsvoice.cli.main import main as run

    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(*_: object) -> None:
    # Nothing has begun yet; an exception could be lost in a module that is being imported.
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
