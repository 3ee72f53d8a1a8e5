"""What all tests need of the process that they run in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.environment import clean_process

# A shell starts background jobs with SIGINT ignored, and a process hands that on to those that it starts; the
# tests that press Ctrl-C need servers which listen to it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: Files whose tests take longest, together or each; first, so that no worker is left alone with one at the end.
LONGEST = (
    "dial/test_call_control.py",
    "test_docs.py",
    "dial/test_caller.py",
    "test_isolation.py",
    "dial/test_providers.py",
    "attacks/test_endless_senders.py",
    "test_pytest_plugin.py",
    "test_pipecat_contracts.py",
    "attacks/test_protocols.py",
    "runner/pipecat/test_documented_features.py",
    "attacks/test_clients.py",
    "providers/test_conformance.py",
    "runner/test_clients.py",
    "attacks/test_dial.py",
    "runner/test_session.py",
    "runner/test_recording.py",
    "dial/test_webhook.py",
    "runner/test_memory.py",
    "test_end_to_end.py",
    "attacks/test_webhooks.py",
    "dial/load/test_calls.py",
    "cli/test_init.py",
)
_ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    rank = {_ROOT / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """Take a developer's own settings and credentials from the environment of the tests that run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        clean_process(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def certificates_read_once() -> Iterator[None]:
    """Have httpx read the machine's certificates once; it takes 25 ms, and tests send each request by itself."""
    create = httpx.create_ssl_context
    context = create()

    def kept(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
        return context if verify is True and cert is None else create(verify, cert, trust_env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", kept)
        yield
