"""
What is relied on in pipecat, and that a pipecat without it breaks no call.

A contract that fails here after an upgrade of pipecat means: read pipecat's change, then mend the feature. The broken
pipecats are the installed one with a few words of its source changed, and a version that nobody has tested.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pipecat
import pytest
from websockets.asyncio.server import serve

from tests.environment import clean_environ
from tests.process import server_process
from tests.runner.peers import RATE, audio_message, next_audio, peer
from tests.signals import tone
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.pipecat_contracts import CALLER_FEATURES, RUNNER_FEATURES, TESTED, Contract, is_tested
from wsvoice.runner.pipecat.patches import PATCHES

ROOT = Path(__file__).parents[1]
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
    "quiet-audio": (
        "processors/frame_processor.py",
        "frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM):",
        "frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM, *, late: bool = False):",
    ),
    "inline-vad": ("audio/vad/vad_analyzer.py", "_run_analyzer", "_analyze"),
    "frame-queue": ("processors/frame_processor.py", "START_PRIORITY", "FIRST_PRIORITY"),
    "quick-start": ("pipeline/worker_observer.py", "_send_to_proxy", "_send_to_proxies"),
    "direct-input": (
        "transports/base_input.py",
        "def push_audio_frame(self, frame: InputAudioRawFrame):",
        "def push_audio_frame(self, frame: InputAudioRawFrame, *, late: bool = False):",
    ),
    "media-sender": (
        "transports/base_output.py",
        "def _bot_stopped_speaking(self):",
        "def _bot_stopped_speaking(self, *, late: bool = False):",
    ),
    "calls": ("utils/base_object.py", "event_name", "event"),
    "caller-bot": ("transports/base_output.py", "_write_dtmf_native", "_write_keys"),
}
#: What relies on the same, and is switched off with it.
ALONG = {
    "call-input": {"client-transport"},
    "input-vad": {"direct-input"},
    "low-latency": {"media-sender"},
    "backlog": {"media-sender"},
    "hang-up": {"direct-input", "quiet-audio", "media-sender"},
}


def with_others(names: set[str]) -> set[str]:
    """Return features, and those that are lost with them."""
    return names.union(*(ALONG.get(name, set()) for name in names))


#: What one connection may do without, by its kind.
MET = {
    "call": ("call-input", "session-timeout", "low-latency", "backlog", "hang-up", "parsed-handshake"),
    "audio of a call": ("direct-input", "media-sender", "low-latency"),
    "client": ("client-transport", "session-timeout", "low-latency", "evals"),
    "client of a port": ("server-transport", "low-latency", "hang-up"),
    "bot that dials": ("dial-transport", "client-transport", "low-latency", "hang-up"),
}
#: In which two of four pipecats each feature is lost. Of any that meet in one connection, each is lost somewhere while
#: the other works; patches have nothing to do with each other.
LOST_IN = {
    "call-input": {0, 1},
    "session-timeout": {0, 2},
    "low-latency": {0, 3},
    "backlog": {1, 2},
    "hang-up": {1, 3},
    "parsed-handshake": {2, 3},
    "client-transport": {0, 1},
    "evals": {1, 2},
    "server-transport": {0, 2},
    "dial-transport": {2, 3},
    "create-transport": {1, 3},
    "old-modules": {0, 1},
    "old-params": {1, 2},
    "input-vad": {2, 3},
    "serializers": {0, 3},
    "shared-models": {0, 2},
    "causes": {2, 3},
    "quiet-audio": {0, 1},
    "inline-vad": {1, 3},
    "frame-queue": {0, 3},
    "quick-start": {1, 2},
    "direct-input": {1, 2},
    "media-sender": {0, 2},
}

ECHO = """
    import sys

    from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.runner.utils import parse_telephony_websocket
    from pipecat.workers.runner import WorkerRunner


    class Echo(FrameProcessor):
        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            if isinstance(frame, InputAudioRawFrame):
                frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
            await self.push_frame(frame, direction)


    async def bot(runner_args):
        kind = type(runner_args).__name__
        if kind == "CallArguments":
            spoken, data = await parse_telephony_websocket(runner_args.websocket)
            # In one piece: other threads log meanwhile.
            sys.stderr.write(f"parsed {spoken} {data['call_id'] == runner_args.call.call_id}\\n")
        transport = runner_args.transport
        worker = PipelineWorker(Pipeline([transport.input(), Echo(), transport.output()]), enable_rtvi=False)

        async def leave(transport, *_):
            await worker.cancel()

        event = "on_disconnected" if kind == "OutboundArguments" else "on_client_disconnected"
        transport.add_event_handler(event, leave)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
"""


#: Serves the bot in every way at once, and dials with it. It prints where it listens, and when it has dialled.
EVERYTHING = """
    import asyncio, json, sys, threading
    import wsvoice

    wsvoice.install()

    from wsvoice.bot_loading import load_bot
    from wsvoice.config import RunConfig
    from wsvoice.runner.server import serve
    from wsvoice.runner.standalone import Stop, run_websocket_client, run_websocket_server

    bot, places, listen = load_bot("bot.py"), {}, {"host": "127.0.0.1", "port": 0}

    ready = threading.Semaphore(0)

    def on_ready(kind):
        def note(each):
            places[kind] = each.url
            ready.release()
        return note

    for kind in ("twilio", "websocket"):
        arguments = (bot, RunConfig(transport=kind, **listen))
        threading.Thread(target=serve, args=arguments, kwargs={"on_ready": on_ready(kind)}, daemon=True).start()

    async def main():
        config = RunConfig(transport="websocket-server", **listen)
        desk = run_websocket_server(bot, config, on_ready=on_ready("websocket-server"), stop=Stop())
        serving = asyncio.create_task(desk)
        for _ in range(3):
            await asyncio.to_thread(ready.acquire)
        print(json.dumps(places), flush=True)
        config = RunConfig(transport="websocket-client", url=sys.argv[1])
        await run_websocket_client(bot, config, on_ready=lambda _: None, stop=Stop())
        print("dialled", flush=True)
        await serving

    asyncio.run(main())
"""
#: Prints what each of several pipecats lacks, of which none is imported.
LOOKS = """
    import importlib, json, sys
    from importlib import metadata
    from wsvoice import pipecat_contracts as contracts

    found = {}
    for site in sys.argv[1:]:
        sys.path.insert(0, site)
        importlib.invalidate_caches()
        contracts._module_code.cache_clear()
        version = metadata.version("pipecat-ai")
        assert not contracts.is_tested(version)
        lost = [feature.name for feature in contracts.missing(contracts.RUNNER_FEATURES, version)]
        found[site] = lost
        sys.path.remove(site)
    assert "pipecat" not in sys.modules
    print(json.dumps(found))
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


@asynccontextmanager
async def started(folder: Path, site: Path, program: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program beside the bot until the context ends; it logs to ``log`` in the folder."""
    (folder / "bot.py").write_text(textwrap.dedent(ECHO))
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", textwrap.dedent(program), *arguments),
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=clean_environ(PYTHONPATH=str(site)),
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def printed(process: asyncio.subprocess.Process, folder: Path, timeout_s: float = 30) -> str:
    """Return the next line that a program prints."""
    assert process.stdout is not None
    async with asyncio.timeout(timeout_s):
        line = await process.stdout.readline()
    assert line, (folder / "log").read_text()
    return line.decode()


async def call(url: str, folder: Path, provider: str = "twilio") -> None:
    """Call a bot that repeats what it hears, and expect a good call."""
    word = folder / f"{provider}.wav"
    write_wav(word, [tone(500, 500, 8000)], 8000)
    report = await dial(DialConfig(target=url, transport=provider, audio=(word,), listen_s=0.1))
    assert report.verdict == "passed", report


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
    assert set(LOST_IN) == {feature.name for feature in RUNNER_FEATURES if not feature.required} - {"server-port"}
    assert set(LOST_IN) == set(PATCHES).union(*MET.values())
    assert all(len(where) == 2 for where in LOST_IN.values())
    assert all(len({tuple(sorted(LOST_IN[name])) for name in names}) == len(names) for names in MET.values())


#: What a telephone call may do without.
IN_CALLS = [
    feature.name
    for feature in RUNNER_FEATURES
    if not feature.required and not feature.name.startswith(("client-", "evals", "server-", "dial-"))
]


class TestAnUntestedVersion:
    def test_each_feature_is_lost_by_itself(self, tmp_path: Path) -> None:
        names = [feature.name for feature in RUNNER_FEATURES if not feature.required]
        sites = {str(changed_pipecat(tmp_path / name, name)): name for name in names}
        whole = str(changed_pipecat(tmp_path))
        result = run([sys.executable, "-c", textwrap.dedent(LOOKS), whole, *sites], tmp_path, Path())
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert found.pop(whole) == []
        assert {sites[site]: set(lost) for site, lost in found.items()} == {name: with_others({name}) for name in names}

    @pytest.mark.parametrize("where", [set(), {0}, {1}, {2}, {3}, {0, 1, 2, 3}], ids=str)
    def test_every_kind_of_conversation_goes_on_without(self, where: set[int], tmp_path: Path) -> None:
        """With all contracts kept, it is like a tested one."""
        names = {name for name, places in LOST_IN.items() if places & where}
        site = changed_pipecat(tmp_path, *names)
        heard = bytearray()

        async def talk(connection: Any) -> None:
            await connection.send(await audio_message(tone(500, 200, RATE)))
            while len(heard) < RATE // 5:
                heard.extend((await next_audio(connection)).audio)

        async def to_the_port(url: str) -> None:
            await converse(url)
            await converse(url)

        async def main() -> None:
            async with serve(talk, "127.0.0.1", 0) as listening:
                url = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
                async with started(tmp_path, site, EVERYTHING, url) as process:
                    places = json.loads(await printed(process, tmp_path))
                    await asyncio.gather(
                        call(places["twilio"], tmp_path),
                        converse(f"{places['websocket'].replace('http', 'ws', 1)}ws-client"),
                        to_the_port(places["websocket-server"]),
                    )
                    assert await printed(process, tmp_path) == "dialled\n"

        asyncio.run(main())
        log = (tmp_path / "log").read_text()
        assert len(heard) >= RATE // 5
        assert "parsed twilio True" in log
        assert (lost(log) if names else set(warnings(log))) == with_others(names)
        assert "Traceback" not in log

    def test_every_providers_call_goes_on_without_any(self, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, *IN_CALLS)

        async def call_all(url: str, providers: list[str]) -> None:
            few = asyncio.Semaphore(2)

            async def soon(provider: str) -> None:
                async with few:
                    await call(f"{url}{provider}", tmp_path, provider)

            await asyncio.gather(*map(soon, providers))

        bot = ECHO.replace('kind == "CallArguments"', "False")
        with server_process(tmp_path, bot, PYTHONPATH=str(site)) as server:
            asyncio.run(call_all(server.url, server.ready["providers"]))
            log = server.log()
            assert set(IN_CALLS) <= lost(log)
            assert "Traceback" not in log


class TestNoCallIsPossible:
    """One line says so, and what to do."""

    HINT = "hint:  tested is pipecat 1.14.x; install it (pip install 'pipecat-ai==1.14.*'), or a newer wsvoice"

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            ("calls", ["run"], r"pipecat\.utils\.base_object\.BaseObject\._register_event_handler has changed"),
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

    def test_one_transport_is_not_possible_and_some_patches(self, tmp_path: Path) -> None:
        site = changed_pipecat(tmp_path, "server-port", "input-vad", "causes")
        program = "import wsvoice.__main__; print(*wsvoice.install({'old-params'})); wsvoice.__main__.main()"
        message = "what -t websocket-server relies on has changed"
        result = self.fails(tmp_path, site, ["run", "-t", "websocket-server"], message, program=("-c", program))
        made = [name for name in PATCHES if name not in ("input-vad", "causes", "old-params")]
        assert result.stdout.split() == made
        assert lost(result.stderr.partition("error: ")[0]) == with_others({"server-port", "input-vad", "causes"})

    def fails(
        self,
        folder: Path,
        site: Path,
        arguments: list[str],
        message: str,
        *,
        program: tuple[str, ...] = ("-m", "wsvoice"),
    ) -> subprocess.CompletedProcess[str]:
        (folder / "bot.py").write_text(textwrap.dedent(ECHO))
        more = ["bot.py", "--port", "0"] if arguments[0] == "run" else []
        result = run([sys.executable, *program, *arguments, *more], folder, site)
        assert result.returncode == 2, result
        line = next(each for each in result.stderr.splitlines() if "error: " in each)
        assert re.search(f"error: wsvoice cannot work with pipecat 1.99.0: {message}$", line), result.stderr
        assert self.HINT in result.stderr
        assert "Traceback" not in result.stderr
        return result


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
