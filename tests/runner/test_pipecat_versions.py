"""
What is relied on in pipecat, and that a pipecat without it breaks no call.

A contract that fails here after an upgrade of pipecat means: read pipecat's change, then mend the feature. The broken
pipecats are the installed one with a few words of its source changed, and a version that nobody has tested.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pipecat
import pytest
from websockets.asyncio.server import serve

from tests.environment import clean_environ
from tests.process import ServerProcess, server_process
from tests.runner.peers import RATE, audio_message, next_audio, peer
from tests.signals import tone
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.pipecat_contracts import CALLER_FEATURES, RUNNER_FEATURES, TESTED, Contract, is_tested
from wsvoice.runner.pipecat.patches import PATCHES

ROOT = Path(__file__).parents[2]
PIPECAT = Path(pipecat.__file__).parent
UNTESTED = "1.99.0"
FEATURES = {feature.name: feature for feature in (*RUNNER_FEATURES, *CALLER_FEATURES)}

#: What is done to pipecat's source for each feature: in which file, what is changed, and into what. Two empty strings
#: remove the file.
BREAKS = {
    "call-input": ("transports/websocket/fastapi.py", "_receive_messages", "_read_messages"),
    "session-timeout": ("transports/websocket/fastapi.py", "_monitor_websocket", "_watch_websocket"),
    "low-latency": ("transports/base_output.py", "_media_senders", "_senders"),
    "backlog": ("processors/frame_processor.py", "__input_queue", "__arrivals"),
    "hang-up": ("utils/base_object.py", "_event_handlers", "_handlers_by_event"),
    "parsed-handshake": ("runner/utils.py", "_pipecat_parsed_telephony", "_pipecat_handshake"),
    "client-transport": ("serializers/protobuf.py", "SERIALIZABLE_TYPES", "TYPES"),
    "evals": ("evals/transport.py", "EvalTransportParams", "EvalParams"),
    "server-transport": ("transports/websocket/server.py", "_client_handler", "_handle_client"),
    "server-port": ("transports/websocket/server.py", "websocket_serve", "listen"),
    "dial-transport": ("transports/websocket/client.py", "_client_task_handler", "_read_messages"),
    "create-transport": ("runner/utils.py", "transport_params", "params_by_name"),
    "old-modules": ("transports/smallwebrtc/connection.py", "", ""),
    "old-params": ("pipeline/worker.py", "_create_start_metadata", "_make_start_metadata"),
    "input-vad": ("transports/base_input.py", "_audio_task_handler", "_handle_audio"),
    "serializers": ("serializers/plivo.py", "auto_hang_up is enabled but", "to hang up, there are"),
    "shared-models": ("audio/vad/silero.py", "onnxruntime.InferenceSession", "_session"),
    "causes": ("utils/base_object.py", "_run_handler", "_run_one"),
    "calls": ("utils/base_object.py", "event_name", "event"),
    "caller-bot": ("transports/base_output.py", "_write_dtmf_native", "_write_keys"),
}
#: What relies on the same, and is switched off with it.
ALONG = {"call-input": {"client-transport"}}

ECHO = """
    from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.workers.runner import WorkerRunner


    class Echo(FrameProcessor):
        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            if isinstance(frame, InputAudioRawFrame):
                frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
            await self.push_frame(frame, direction)


    async def bot(runner_args):
        transport = runner_args.transport
        worker = PipelineWorker(Pipeline([transport.input(), Echo(), transport.output()]), enable_rtvi=False)

        async def leave(transport, *_):
            await worker.cancel()

        client = runner_args.__class__.__name__ == "DialArguments"
        transport.add_event_handler("on_disconnected" if client else "on_client_disconnected", leave)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
"""


def changed_pipecat(folder: Path, *names: str, version: str = UNTESTED) -> Path:
    """Make a pipecat of this version, without what the named features rely on; return what goes on the path."""
    changes: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        file, old, new = BREAKS[name]
        changes.setdefault(file, []).append((old, new))
    site = folder / "site"
    _link(PIPECAT, site / "pipecat", "", changes)
    information = site / f"pipecat_ai-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pipecat-ai\nVersion: {version}\n")
    return site


def _link(source: Path, target: Path, at: str, changes: dict[str, list[tuple[str, str]]]) -> None:
    target.mkdir(parents=True)
    for each in source.iterdir():
        path = f"{at}{each.name}"
        if each.name == "__pycache__":
            continue
        if each.is_dir() and any(file.startswith(f"{path}/") for file in changes):
            _link(each, target / each.name, f"{path}/", changes)
        elif path not in changes:
            (target / each.name).symlink_to(each)
        elif changes[path] != [("", "")]:
            text = each.read_text()
            for old, new in changes[path]:
                assert old in text
                text = text.replace(old, new)
            (target / each.name).write_text(text)


def call(server: ServerProcess, folder: Path, provider: str = "twilio") -> None:
    """Call a bot that repeats what it hears, and expect a good call."""
    word = folder / "word.wav"
    write_wav(word, [tone(500, 500, 8000)], 8000)
    place = server.url if server.ready["providers"] == [provider] else f"{server.url}{provider}"
    report = asyncio.run(dial(DialConfig(target=place, transport=provider, audio=(word,), listen_s=0.1)))
    assert report.verdict == "passed", f"{report}\n{server.log()}"


async def converse(url: str) -> None:
    """Say something to a bot that repeats what it hears, and wait until it is back."""
    async with peer(url) as each:
        await each.say(tone(500, 200, RATE))
        await each.until_heard(RATE // 5)


def warnings(log: str) -> list[str]:
    return [line for line in log.splitlines() if f"pipecat {UNTESTED}" in line]


def lost(log: str) -> set[str]:
    """Return the features that the one warning says are switched off."""
    (line,) = warnings(log)
    named = {name for name, feature in FEATURES.items() if f"{name} ({feature.lost})" in line}
    assert line.count("(") >= len(named)
    return named


@pytest.mark.parametrize(
    "contract",
    [
        pytest.param(contract, id=f"{name}-{contract.place.split(':')[1] or contract.place}-{number}")
        for name, feature in FEATURES.items()
        for number, contract in enumerate(feature.contracts)
    ],
)
def test_the_contract_holds(contract: Contract) -> None:
    assert contract.holds()


@pytest.mark.parametrize(
    "contract",
    [
        Contract("pipecat.no_such_module:"),
        Contract("pipecat.transports.base_input:NoSuchClass"),
        Contract("pipecat.transports.base_input:BaseInputTransport.no_such_function"),
        Contract("pipecat.transports.base_input:BaseInputTransport.start", ("no_such_attribute",)),
        Contract("pipecat.transports.base_input:BaseInputTransport.start", ("no such words",)),
        Contract("pipecat.transports.base_input:BaseInputTransport.start", parameters=("no_such_parameter",)),
        Contract("pipecat.transports.base_input:BaseInputTransport.start", parameters=("self",), exactly=True),
    ],
)
def test_a_contract_that_does_not_hold(contract: Contract) -> None:
    assert not contract.holds()


def test_the_installed_version_is_a_tested_one() -> None:
    """Every test has just passed with it, or has not: then it is not to be in the list."""
    assert is_tested(pipecat.__version__)


def test_the_lowest_version_allowed_is_a_tested_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (lowest,) = re.findall(r"pipecat-ai\[websocket\]>=([\d.]+),<2", " ".join(project["dependencies"]))
    assert lowest in TESTED
    assert not is_tested("1.140.0")
    assert not is_tested("1.13.0")


def test_the_page_lists_what_can_be_lost() -> None:
    page = (ROOT / "docs/pipecat-versions.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(feature.name, feature.lost) for feature in RUNNER_FEATURES if not feature.required]
    assert f"All tests pass with **{', '.join(TESTED)}**" in page
    assert f"pip install 'pipecat-ai=={TESTED[-1]}.*'" in page


def test_every_feature_says_what_is_lost_and_can_be_broken() -> None:
    assert all(feature.lost and feature.contracts for feature in FEATURES.values())
    assert set(BREAKS) == set(FEATURES)
    assert set(PATCHES) <= set(FEATURES)


#: What a telephone call may do without.
IN_CALLS = [
    feature.name
    for feature in RUNNER_FEATURES
    if not feature.required and not feature.name.startswith(("client-", "evals", "server-", "dial-"))
]


class TestAnUntestedVersion:
    def test_with_all_contracts_kept_is_like_a_tested_one(self, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path)
        with server_process(tmp_path, ECHO, "-t", "twilio", PYTHONPATH=str(site)) as server:
            call(server, tmp_path)
            assert warnings(server.log()) == []

    @pytest.mark.parametrize("name", IN_CALLS)
    def test_a_call_goes_on_without(self, name: str, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, name)
        with server_process(tmp_path, ECHO, "-t", "twilio", PYTHONPATH=str(site)) as server:
            call(server, tmp_path)
            log = server.log()
            assert lost(log) == {name} | ALONG.get(name, set())
            assert "Traceback" not in log

    def test_every_providers_call_goes_on_without_any(self, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, *IN_CALLS)
        with server_process(tmp_path, ECHO, PYTHONPATH=str(site)) as server:
            for provider in server.ready["providers"]:
                call(server, tmp_path, provider)
            log = server.log()
            assert set(IN_CALLS) <= lost(log)
            assert "Traceback" not in log

    def test_a_handshake_that_the_bot_parses_itself(self, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, "parsed-handshake")
        bot = ECHO.replace(
            "transport = runner_args.transport",
            """from pipecat.runner.utils import parse_telephony_websocket
        kind, data = await parse_telephony_websocket(runner_args.websocket)
        print("parsed", kind, data["call_id"] == runner_args.call.call_id, file=__import__("sys").stderr, flush=True)
        transport = runner_args.transport""",
        )
        with server_process(tmp_path, bot, "-t", "twilio", PYTHONPATH=str(site)) as server:
            call(server, tmp_path)
            assert "parsed twilio True" in server.log()

    @pytest.mark.parametrize("name", ["client-transport", "evals", "call-input", "session-timeout", "low-latency"])
    def test_a_client_is_served_without(self, name: str, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, name)
        with server_process(tmp_path, ECHO, "-t", "websocket", PYTHONPATH=str(site)) as server:
            asyncio.run(converse(f"{server.url.replace('http', 'ws', 1)}ws-client"))
            log = server.log()
            assert name in lost(log)
            assert "Traceback" not in log

    @pytest.mark.parametrize("names", [("server-transport",), ("server-transport", "low-latency", "hang-up")])
    def test_clients_are_served_one_by_one_without(self, names: tuple[str, ...], tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, *names)
        with server_process(tmp_path, ECHO, "-t", "websocket-server", PYTHONPATH=str(site)) as server:
            asyncio.run(converse(server.url))
            asyncio.run(converse(server.url))
            log = server.log()
            assert lost(log) == set(names)
            assert "Traceback" not in log

    @pytest.mark.parametrize("names", [("dial-transport",), ("dial-transport", "client-transport", "hang-up")])
    def test_a_bot_dials_out_without(self, names: tuple[str, ...], tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, *names)
        heard = bytearray()

        async def talk(connection: Any) -> None:
            await connection.send(await audio_message(tone(500, 200, RATE)))
            while len(heard) < RATE // 5:
                heard.extend((await next_audio(connection)).audio)

        async def main() -> str:
            async with serve(talk, "127.0.0.1", 0) as listening:
                url = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
                arguments = ("-t", "websocket-client", "--url", url)
                with server_process(tmp_path, ECHO, *arguments, PYTHONPATH=str(site)) as process:
                    assert await asyncio.to_thread(process.wait, 20) == 0
                    return process.log()

        log = asyncio.run(main())
        assert len(heard) >= RATE // 5
        assert lost(log) == set(names)
        assert "Traceback" not in log

    def test_a_patch_that_is_not_possible_is_not_made(self, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, "input-vad", "causes")
        program = "import wsvoice; print(*wsvoice.install({'old-params'}))"
        result = run([sys.executable, "-c", program], tmp_path, site)
        assert result.stdout.split() == [name for name in PATCHES if name not in ("input-vad", "causes", "old-params")]
        assert lost(result.stderr) == {"input-vad", "causes"}


class TestNoCallIsPossible:
    """One line says so, and what to do."""

    HINT = "hint:  tested is pipecat 1.14.x; install it (pip install 'pipecat-ai==1.14.*'), or a newer wsvoice"

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            ("calls", ["run"], r"pipecat\.utils\.base_object\.BaseObject\._register_event_handler has changed"),
            ("server-port", ["run", "-t", "websocket-server"], "-t websocket-server needs what has changed in it"),
            ("caller-bot", ["dial", "--caller", "bot.py"], r"[\w.]+BaseOutputTransport\.[\w.]+ has changed"),
        ],
    )
    def test_a_required_contract(self, name: str, arguments: list[str], message: str, tmp_path: Path) -> None:
        self.fails(tmp_path, changed_pipecat(tmp_path, name), arguments, message)

    def test_a_module_is_gone(self, tmp_path: Path) -> None:
        BREAKS["gone"] = ("transports/websocket/fastapi.py", "", "")
        try:
            site = changed_pipecat(tmp_path, "gone")
        finally:
            del BREAKS["gone"]
        self.fails(tmp_path, site, ["run"], "No module named 'pipecat.transports.websocket.fastapi'")

    def fails(self, folder: Path, site: Path, arguments: list[str], message: str) -> None:
        (folder / "bot.py").write_text(textwrap.dedent(ECHO))
        more = ["bot.py", "--port", "0"] if arguments[0] == "run" else []
        result = run([sys.executable, "-m", "wsvoice", *arguments, *more], folder, site)
        assert result.returncode == 2, result
        line = next(each for each in result.stderr.splitlines() if "error: " in each)
        assert re.search(f"error: wsvoice cannot work with pipecat 1.99.0: {message}$", line), result.stderr
        assert self.HINT in result.stderr
        assert "Traceback" not in result.stderr


def run(command: list[str], folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=clean_environ(PYTHONPATH=str(site)),
        check=False,
    )
