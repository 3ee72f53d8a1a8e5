"""The environment of the processes that tests start: without what a developer's own shell has for wsvoice."""

from __future__ import annotations

import atexit
import os
import shutil
from functools import cache
from tempfile import mkdtemp

import pytest

from wsvoice.providers import PROVIDERS, load_company

#: A provider's own prefix takes its credentials along, and what its SDK or pipecat reads besides.
_PREFIXES = ("WSVOICE_", "NGROK_", "PIPECAT_", "OTEL_", *(f"{name.upper()}_" for name in PROVIDERS))
_CREDENTIALS = frozenset(name for provider in PROVIDERS for name in load_company(provider).credential_names)


def is_setting(name: str) -> bool:
    """Whether an environment variable would change what wsvoice does."""
    return name.startswith(_PREFIXES) or name in _CREDENTIALS


@cache
def state_folder() -> str:
    """Return the folder for what servers tell each other: this process's own, where none of another one's is found."""
    folder = mkdtemp(prefix="wsvoice-state-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def clean_environ(**extra: str) -> dict[str, str]:
    """
    Return this process's environment without settings and credentials, and with `extra`.

    A process that gets it is to run outside of the clone too, for a ``.env`` there is a developer's as well.
    """
    kept = {name: value for name, value in os.environ.items() if not is_setting(name)}
    return {**kept, "WSVOICE_STATE_DIR": state_folder(), **extra}


def clean_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take settings and credentials from this process's own environment, for as long as a test lasts."""
    for name in list(os.environ):
        if is_setting(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WSVOICE_STATE_DIR", state_folder())
