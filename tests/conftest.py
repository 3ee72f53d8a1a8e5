"""What all tests need of the process that they run in."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# Unused here, but httpx loads it late, and keeps its exceptions: a pytest that runs inside of a test forgets the
# modules that were loaded in it, and the errors of those that are loaded anew are none that httpx knows.
import httpcore  # noqa: F401
import httpx
import pytest

from tests.environment import clean_process

# A shell starts background jobs with SIGINT ignored, and a process hands that on to those that it starts; the
# tests that press Ctrl-C need servers which listen to it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: Files whose tests take longest, together or each; first, so that no worker is left alone with one at the end.
LONGEST = (
    "browser_phone/test_browser.py",
    "phone/test_placed_calls.py",
    "providers/test_conformance.py",
    "test_pytest_plugin.py",
    "test_docs.py",
    "test_pipecat_contracts.py",
    "test_scaffold.py",
    "workers/test_workers.py",
    "browser_phone/test_server.py",
    "replay/test_scenarios.py",
    "replay/test_dial_replay.py",
    "test_isolation.py",
    "runner/test_upgrade.py",
    "dial/test_caller.py",
    "runner/pipecat/test_patches.py",
    "dial/test_providers.py",
    "workers/test_parity.py",
    "runner/pipecat/test_media_sender.py",
    "attacks/test_endless_senders.py",
    "runner/test_own_number.py",
    "dial/test_call_control.py",
    "runner/test_logs.py",
    "attacks/test_protocols.py",
    "fleet/test_placed_calls.py",
    "runner/test_server.py",
    "phone/test_real_phone.py",
    "cli/test_phone.py",
    "attacks/test_clients.py",
    "workers/test_hostile_bots.py",
    "runner/pipecat/test_documented_features.py",
    "runner/test_telemetry.py",
    "test_pipecat_runner.py",
    "attacks/test_dial.py",
    "runner/test_media_socket.py",
    "scenarios/test_items.py",
    "test_package.py",
    "phone/test_dial_command.py",
    "test_end_to_end.py",
    "runner/pipecat/test_call_transport.py",
    "runner/test_recording.py",
    "runner/test_memory.py",
    "runner/test_clients.py",
    "dial/test_webhook.py",
    "cli/test_init.py",
    "dial/test_bot_files.py",
    "attacks/test_webhooks.py",
    "trace/test_run.py",
    "runner/test_session.py",
    "cli/test_dial_number.py",
    "runner/test_provider_messages.py",
    "doctor/test_planted_faults.py",
    "dial/load/test_calls.py",
    "runner/test_single_client.py",
    "workers/test_capacity.py",
    "trace/test_dial.py",
    "words/test_call.py",
)
_ROOT = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """
    Leave what is collected out of collections of garbage.

    It stays until the end: modules, and ten thousand tests. To look through it again and again takes a second before
    the first test, and a third of one in each full collection afterwards.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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
