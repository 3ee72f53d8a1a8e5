"""
That each patch does what it is for, and what it relies on that cannot be looked up quickly.

What can be is in ``wsvoice/pipecat_contracts.py``. A failure of a test in ``TestContracts`` after an upgrade of pipecat
means: read pipecat's change, then mend the patch.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from tests.environment import clean_environ
from tests.signals import speech_like
from wsvoice.audio import read_audio, resample
from wsvoice.config import resolve_run
from wsvoice.errors import ConfigError
from wsvoice.pipecat_moved import MOVED
from wsvoice.runner.pipecat.patches import PATCHES, install

#: Looks for garbage are a third of what such a program takes.
UNCOLLECTED = "import atexit, gc; gc.disable(); atexit.register(gc.freeze)\n"


def python(program: str) -> str:
    """Run a program in a fresh interpreter, where nothing is patched; return what it prints to either stream."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", UNCOLLECTED + textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=folder,
            env=clean_environ(),
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def source_hash(function: object) -> str:
    text = inspect.getsource(inspect.unwrap(function))  # type: ignore[arg-type]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class TestContracts:
    def test_input_vad_stands_in_for_this_audio_task(self) -> None:
        """``SpeechDetector.listen`` does what this function does, and listens besides."""
        from pipecat.transports.base_input import BaseInputTransport

        install()
        assert source_hash(BaseInputTransport._audio_task_handler) == "79e927e3d6d9d3ba"
        assert source_hash(BaseInputTransport.push_audio_frame) == "3306f2143f4a2855"

    def test_causes_runs_a_handler_as_this_does(self) -> None:
        from pipecat.utils.base_object import BaseObject

        install()
        assert source_hash(BaseObject._run_handler) == "5df02319e7da85a6"

    def test_a_start_frame_carries_the_pipelines_metadata(self) -> None:
        from pipecat.pipeline.pipeline import Pipeline
        from pipecat.pipeline.worker import PipelineParams, PipelineWorker

        install()

        async def main() -> None:
            worker = PipelineWorker(Pipeline([]), params=PipelineParams(allow_interruptions=False))
            assert worker._create_start_metadata() == {"allow_interruptions": False}

        asyncio.run(main())

    @pytest.mark.parametrize("old", MOVED)
    def test_the_old_module_is_gone_and_the_new_one_is_there(self, old: str) -> None:
        """Found, not imported: some of them want libraries that are not installed everywhere."""
        import importlib.util

        path = Path(importlib.util.find_spec("pipecat").submodule_search_locations[0])  # type: ignore[union-attr,index]
        new = path.joinpath(*MOVED[old].split(".")[1:])
        assert new.with_suffix(".py").is_file()
        gone = path.joinpath(*old.split(".")[1:])
        assert not gone.with_suffix(".py").exists()
        assert not gone.exists()

    def test_params_ignore_what_they_do_not_know_and_serializers_complain_in_these_words(self) -> None:
        """Were params to forbid it or to have the fields again, their patch would have to go."""
        from wsvoice.runner.pipecat.patches.serializers import COMPLAINT, SERIALIZERS

        program = f"""
            import importlib
            for module, name in {SERIALIZERS!r}.items():
                kind = getattr(importlib.import_module(module), name)
                names = ["MZ1", "PCMU", "PCMU"] if "Telnyx" in name else ["MZ1"]
                try:
                    kind(*names)
                except ValueError as error:
                    print("refused", str(error).startswith({COMPLAINT!r}))
                else:
                    print("made")
        """
        unpatched = python(f"""
            from pipecat.pipeline.worker import PipelineParams
            from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
            params = FastAPIWebsocketParams(vad_analyzer=1, turn_analyzer=1, vad_enabled=True, camera_out_width=3)
            PipelineParams(allow_interruptions=False)
            print(sorted(set(vars(params)) & {{"vad_analyzer", "turn_analyzer", "vad_enabled", "camera_out_width"}}))
            {program}
        """).splitlines()
        assert "[]" in unpatched
        assert [line for line in unpatched if line == "refused True"] == ["refused True"] * 3
        printed = python(f"""
            from wsvoice.runner.pipecat.patches import install
            install()
            {program}
            serializer = kind("MZ1", params=kind.InputParams(sample_rate=16000))
            print("kept", serializer._params.sample_rate, serializer._params.auto_hang_up)
        """)
        assert [line for line in printed.splitlines() if line == "made"] == ["made"] * 3
        assert "kept 16000 False" in printed

    def test_models_are_loaded_by_the_names_that_are_shared(self) -> None:
        import pipecat.audio.turn.smart_turn.local_smart_turn_v3 as smart_turn
        import pipecat.audio.vad.silero as silero

        install()
        from wsvoice.runner.pipecat.patches.shared_models import SharedRuntime

        assert isinstance(silero.onnxruntime, SharedRuntime)
        assert isinstance(smart_turn.ort, SharedRuntime)
        first, second = silero.SileroVADAnalyzer(), silero.SileroVADAnalyzer()
        assert first._model.session is second._model.session
        assert first._model._state is not second._model._state
        one, other = smart_turn.LocalSmartTurnAnalyzerV3(), smart_turn.LocalSmartTurnAnalyzerV3()
        assert one._session is other._session
        assert one._audio_buffer is not other._audio_buffer


CONFIDENCES = """
    import hashlib
    if {patched}:
        from wsvoice.runner.pipecat.patches import install
        install()
    from pipecat.audio.vad.silero import SileroVADAnalyzer
    for rate, names in {names!r}.items():
        clips = [open(name, "rb").read() for name in names]
        analyzers = [SileroVADAnalyzer() for _ in clips]
        for each in analyzers:
            each.set_sample_rate(rate)
        step = analyzers[0].num_frames_required() * 2
        digest = hashlib.sha256()
        # The calls take turns, so that anything they shared would show.
        for at in range(0, min(map(len, clips)) - step, step):
            for each, clip in zip(analyzers, clips):
                digest.update(each.voice_confidence(clip[at : at + step]).tobytes())
        print("digest", rate, digest.hexdigest())
        print("sessions", len({{id(each._model.session) for each in analyzers}}))
"""


class TestSharedModels:
    def test_confidences_are_the_same_to_the_last_bit(self, tmp_path: Path) -> None:
        names: dict[int, list[str]] = {}
        for rate in (8000, 16000):
            with as_file(files("wsvoice.dial") / "question.wav") as path:
                spoken = resample(*read_audio(path), rate)
            for number, pcm in enumerate([spoken, speech_like(2500, rate), speech_like(2500, rate, seed=7)]):
                clip = tmp_path / f"{rate}-{number}.pcm"
                clip.write_bytes(pcm)
                names.setdefault(rate, []).append(str(clip))
        printed = [python(CONFIDENCES.format(patched=patched, names=names)) for patched in (True, False)]
        assert printed[0].count("sessions 1\n") == 2
        assert printed[1].count("sessions 3\n") == 2
        digests = [[line for line in each.splitlines() if line.startswith("digest")] for each in printed]
        assert len(digests[0]) == 2
        assert digests[0] == digests[1]

    def test_another_analyzer_costs_nothing(self) -> None:
        install()
        from pipecat.audio.vad.silero import SileroVADAnalyzer

        def cost_s() -> float:
            begin = time.perf_counter()
            SileroVADAnalyzer()
            return time.perf_counter() - begin

        # Loading takes 25 ms at the very best.
        assert min(cost_s() for _ in range(10)) < 0.01


class TestOldModules:
    def test_imports_lead_to_the_same_classes_with_one_warning_each(self) -> None:
        """And a params argument of theirs is kept."""
        printed = python("""
            import sys
            from wsvoice.runner.pipecat.patches import install
            install()
            assert not [name for name in sys.modules if name.startswith(("pipecat.transports.network", "pipecat.vad"))]
            assert "pipecat.transports.websocket.server" not in sys.modules
            assert "pipecat.audio.vad.silero" not in sys.modules
            from pipecat.transports.network.fastapi_websocket import FastAPIWebsocketParams, FastAPIWebsocketTransport
            import pipecat.transports.network.fastapi_websocket as old
            from pipecat.transports.network import fastapi_websocket
            import pipecat.transports.websocket.fastapi as new
            assert old is new and fastapi_websocket is new and new.__spec__.name == new.__name__
            assert FastAPIWebsocketTransport is new.FastAPIWebsocketTransport
            from pipecat.transports.network.websocket_server import WebsocketServerParams, WebsocketServerTransport
            from pipecat.transports.network.websocket_client import WebsocketClientTransport
            from pipecat.vad.silero import SileroVADAnalyzer
            from pipecat.vad.vad_analyzer import VADParams
            from pipecat.pipeline.task import PipelineParams, PipelineTask
            from pipecat.pipeline.runner import PipelineRunner
            try:
                import pipecat.transports.network.no_such_thing
            except ModuleNotFoundError as error:
                print("missing", error.name)
            params = WebsocketServerParams(vad_analyzer=SileroVADAnalyzer(), session_timeout=180)
            print(type(params.vad_analyzer).__name__, params.session_timeout)
        """)
        assert "SileroVADAnalyzer 180" in printed
        warnings = [line for line in printed.splitlines() if "change the import" in line]
        assert len(warnings) == 5
        assert any(
            "pipecat.transports.network.fastapi_websocket is now pipecat.transports.websocket.fastapi" in line
            for line in warnings
        )
        assert "missing pipecat.transports.network.no_such_thing" in printed


class TestSwitchingOff:
    @pytest.mark.parametrize("name", PATCHES)
    def test_each_has_an_apply(self, name: str) -> None:
        module = importlib.import_module(f"wsvoice.runner.pipecat.patches.{name.replace('-', '_')}")
        assert callable(module.apply)

    def test_all_off(self) -> None:
        """Without any, pipecat is as it comes."""
        printed = python(f"""
            import sys, pipecat.runner.utils
            from pipecat.transports.base_input import BaseInputTransport
            from pipecat.transports.base_transport import TransportParams
            before = (pipecat.runner.utils.create_transport, TransportParams.__init__, BaseInputTransport.setup)
            finders = list(sys.meta_path)
            from wsvoice.runner.pipecat.patches import install
            install(frozenset({list(PATCHES)!r}))
            after = (pipecat.runner.utils.create_transport, TransportParams.__init__, BaseInputTransport.setup)
            print("same", before == after and finders == sys.meta_path)
            install()
            after = (pipecat.runner.utils.create_transport, TransportParams.__init__, BaseInputTransport.setup)
            print("changed", [a != b for a, b in zip(before, after)])
        """)
        assert "same True" in printed
        assert "changed [True, True, True]" in printed

    @pytest.mark.parametrize("name", PATCHES)
    def test_the_environment_switches_each_off(self, name: str, tmp_path: Path) -> None:
        environ = {"WSVOICE_DISABLE_PATCHES": f"{name}, old-modules"}
        resolved = resolve_run({}, environ=environ, cwd=tmp_path)
        assert resolved.config.disabled_patches == {name, "old-modules"}
        assert resolved.origins["disable-patches"] == "environment WSVOICE_DISABLE_PATCHES"

    def test_an_unknown_name_is_told(self) -> None:
        with pytest.raises(ConfigError, match="named 'old-param'") as caught:
            install({"old-param"})
        assert caught.value.hint == "did you mean `old-params`?"

    def test_twice_is_once(self) -> None:
        from pipecat.transports.base_input import BaseInputTransport
        from pipecat.transports.base_transport import TransportParams

        install()
        before = TransportParams.__init__, BaseInputTransport.setup, list(sys.meta_path)
        install()
        assert before == (TransportParams.__init__, BaseInputTransport.setup, list(sys.meta_path))


class TestInlineVad:
    def test_the_same_speech_is_found_without_a_thread(self) -> None:
        printed = python(
            """
            import asyncio, threading
            from importlib.resources import files
            import wsvoice
            from wsvoice.audio import read_audio, resample

            wsvoice.install()
            from pipecat.audio.vad.silero import SileroVADAnalyzer
            from pipecat.audio.vad.vad_analyzer import VADAnalyzer

            class Own(SileroVADAnalyzer):
                def voice_confidence(self, buffer):
                    threads.add(threading.get_ident())
                    return super().voice_confidence(buffer)

            threads = set()

            async def states(analyzer, analyze):
                analyzer.set_sample_rate(8000)
                found = []
                for at in range(0, len(pcm), 320):
                    state = await analyze(analyzer, pcm[at : at + 320])
                    found.append((state.name, analyzer._prev_volume))
                return found

            async def main():
                ours = await states(SileroVADAnalyzer(), SileroVADAnalyzer.analyze_audio)
                assert ours == await states(SileroVADAnalyzer(), VADAnalyzer.analyze_audio)
                assert ours == await states(Own(), Own.analyze_audio)
                assert threading.get_ident() not in threads and len(threads) == 1
                print("spoke", sum(state == "SPEAKING" for state, _ in ours) > 50)

            with files("wsvoice.dial").joinpath("question.wav").open("rb") as file:
                sound, rate = read_audio(file.name)
            pcm = bytes(16000) + resample(sound, rate, 8000) + bytes(16000)
            asyncio.run(main())
            """
        )
        assert "spoke True" in printed


class TestBatches:
    def test_each_call_hears_what_it_would_hear_alone(self) -> None:
        """Twelve calls that speak at other times, one of which fails and one of which is cancelled."""
        printed = python(
            """
            import asyncio
            from importlib.resources import files
            import wsvoice
            from wsvoice.audio import read_audio, resample

            wsvoice.install()
            from pipecat.audio.vad.silero import SileroVADAnalyzer
            from pipecat.audio.vad.vad_analyzer import VADAnalyzer
            from wsvoice.runner.pipecat.patches import inline_vad

            sizes = []
            run = inline_vad.Batches._run

            def counted(self, models, windows):
                sizes.append(len(models))
                return run(self, models, windows)

            inline_vad.Batches._run = counted

            async def states(number, rate, analyze, step_s):
                analyzer = SileroVADAnalyzer()
                analyzer.set_sample_rate(rate)
                size, found = rate // 50 * 2, []
                pcm = bytes(2 * (rate // 100) * number) + sounds[rate]
                for at in range(0, len(pcm), size):
                    state = await analyze(analyzer, pcm[at : at + size])
                    found.append((state.name, analyzer._prev_volume))
                    await asyncio.sleep(step_s)
                return found, analyzer._model._state.tobytes()

            async def main():
                ours = SileroVADAnalyzer.analyze_audio
                calls = [(number, (8000, 16000)[number % 2]) for number in range(12)]
                cancelled = asyncio.create_task(states(0, 8000, ours, 0.001))
                asyncio.get_running_loop().call_later(0.1, cancelled.cancel)
                together = await asyncio.gather(*(states(*call, ours, 0.002) for call in calls))
                alone = [await states(*call, VADAnalyzer.analyze_audio, 0) for call in calls]
                print("same", together == alone, "together", max(sizes) > 2, "cancelled", cancelled.cancelled())
                print("spoke", all(any(state == "SPEAKING" for state, _ in found) for found, _ in together))

            with files("wsvoice.dial").joinpath("question.wav").open("rb") as file:
                sound, rate = read_audio(file.name)
            sounds = {each: bytes(each // 5) + resample(sound, rate, each) + bytes(each) for each in (8000, 16000)}
            asyncio.run(main())
            """
        )
        assert "same True together True cancelled True" in printed
        assert "spoke True" in printed

    def test_a_model_that_fails_is_no_speech(self) -> None:
        printed = python(
            """
            import asyncio
            import wsvoice

            wsvoice.install()
            from pipecat.audio.vad.silero import SileroVADAnalyzer

            class Broken:
                def run(self, *given):
                    raise RuntimeError("no model")

            async def main():
                analyzers = [SileroVADAnalyzer() for _ in range(8)]
                for each in analyzers:
                    each.set_sample_rate(8000)
                    each._model.session = Broken()
                for _ in range(3):
                    found = await asyncio.gather(*(each.analyze_audio(bytes(512)) for each in analyzers))
                    print("found", {state.name for state in found})

            asyncio.run(main())
            """
        )
        assert printed.count("found {'QUIET'}") == 3


class TestFrameQueue:
    def test_frames_come_in_pipecats_order(self) -> None:
        """Start, then system frames, then all others, each kind in its order; also while a task waits for them."""
        printed = python(
            """
            import asyncio, random
            from pipecat.frames.frames import InputAudioRawFrame, StartFrame, TextFrame
            from pipecat.processors import frame_processor
            from pipecat.processors.frame_processor import FrameDirection

            theirs = frame_processor.FrameProcessorQueue
            from wsvoice.runner.pipecat.patches import frame_queue
            frame_queue.apply()
            assert frame_processor.FrameProcessorQueue is frame_queue.FrameQueue

            def frame(kind, number):
                made = {
                    "start": lambda: StartFrame(),
                    "system": lambda: InputAudioRawFrame(bytes(2), 8000, 1),
                    "other": lambda: TextFrame("text"),
                }[kind]()
                made.metadata["number"] = number
                return made

            async def order(queue, seed):
                choose, got = random.Random(seed), []

                async def take():
                    while True:
                        item = await queue.get()
                        got.append(item[0].metadata["number"])
                        if choose_slow.random() < 0.3:
                            await asyncio.sleep(0)
                        queue.task_done()

                choose_slow = random.Random(seed + 1)
                task = asyncio.create_task(take())
                for number in range(60):
                    kind = choose.choice(["system", "other", "system", "other", "start" if number < 5 else "other"])
                    await queue.put((frame(kind, number), FrameDirection.DOWNSTREAM, None))
                    if choose.random() < 0.2:
                        await asyncio.sleep(0)
                while len(got) < 60:
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    pass
                assert queue.qsize() == 0 and queue.empty()
                return got

            same = [asyncio.run(order(frame_queue.FrameQueue(), seed)) == asyncio.run(order(theirs(), seed))
                    for seed in range(40)]
            print("same", sum(same))
            """
        )
        assert "same 40" in printed

    def test_in_a_callback_each_processor_is_resumed_at_once_and_in_order(self) -> None:
        printed = python(
            """
            import asyncio, contextvars
            from wsvoice.runner.pipecat.patches import frame_queue
            from pipecat.frames.frames import InputAudioRawFrame

            name = contextvars.ContextVar("name")

            class Processor:
                def __init__(self, label, following=None):
                    self.label, self.queue, self.following = label, frame_queue.FrameQueue(), following

                async def queue_frame(self, frame):
                    await self.queue.put((frame, None, None))

                async def work(self):
                    name.set(self.label)
                    while True:
                        frame, _, _ = await self.queue.get()
                        assert asyncio.current_task() is self.task and name.get() == self.label
                        steps.append(self.label)
                        if self.following:
                            await self.following.queue_frame(frame)
                            await self.following.queue_frame(frame)
                            steps.append(f"{self.label} is done")
                        if frame.metadata.get("exit") and not self.following:
                            raise SystemExit(7)

            async def main():
                loop = asyncio.get_running_loop()
                last = Processor("last")
                first = Processor("first", last)
                for each in last, first:
                    each.task = asyncio.create_task(each.work())
                await asyncio.sleep(0)
                done = loop.create_future()

                def callback():
                    try:
                        frame_queue.put_in_a_callback(first, InputAudioRawFrame(bytes(2), 8000, 1))
                        print(steps)
                        steps.clear()
                    finally:
                        done.set_result(None)

                loop.call_soon(callback)
                await done
                # A task that puts a frame is never interrupted by the one that takes it.
                await first.queue_frame(InputAudioRawFrame(bytes(2), 8000, 1))
                print("at once", steps)
                await asyncio.sleep(0.01)
                print("later", steps)
                first.task.cancel()
                await asyncio.wait([first.task])
                print("cancelled", first.task.cancelled())
                exiting = InputAudioRawFrame(bytes(2), 8000, 1)
                exiting.metadata["exit"] = True
                went_on = []
                loop.call_soon(lambda: (frame_queue.put_in_a_callback(last, exiting), went_on.append(1)))
                try:
                    await asyncio.sleep(1)
                finally:
                    print("went on", went_on)

            steps = []
            try:
                asyncio.run(main())
            except SystemExit as error:
                print("exit", error.code)
            """
        )
        lines = [line for line in printed.splitlines() if "INFO" not in line]
        assert lines == [
            "['first', 'first is done', 'last', 'last']",
            "at once []",
            "later ['first', 'first is done', 'last', 'last']",
            "cancelled True",
            "went on [1]",
            "exit 7",
        ]


class TestQuietAudio:
    def test_audio_is_seen_by_whoever_wants_it(self) -> None:
        """By an observer of the bot's, by an event handler, and by a processor: as often as without the patch."""
        printed = python(
            """
            import asyncio, sys
            import wsvoice

            wsvoice.install({"quiet-audio"} if sys.argv[1:] else set())
            from pipecat.frames.frames import EndFrame, OutputAudioRawFrame
            from pipecat.observers.base_observer import BaseObserver
            from pipecat.pipeline.pipeline import Pipeline
            from pipecat.pipeline.worker import PipelineWorker
            from pipecat.processors.frame_processor import FrameProcessor
            from pipecat.workers.runner import WorkerRunner

            class Through(FrameProcessor):
                async def process_frame(self, frame, direction):
                    await super().process_frame(frame, direction)
                    seen["processor"] += isinstance(frame, OutputAudioRawFrame)
                    await self.push_frame(frame, direction)

            class Watcher(BaseObserver):
                async def on_push_frame(self, data):
                    seen["pushes"] += isinstance(data.frame, OutputAudioRawFrame)

            class ProcessWatcher(BaseObserver):
                async def on_process_frame(self, data):
                    seen["processing"] += isinstance(data.frame, OutputAudioRawFrame)

            async def call(observers, handlers):
                through = [Through(), Through()]
                worker = PipelineWorker(Pipeline(through), observers=list(observers), enable_rtvi=False)
                if handlers:
                    @through[0].event_handler("on_before_push_frame")
                    async def before(processor, frame):
                        seen["handler"] += isinstance(frame, OutputAudioRawFrame)
                await worker.queue_frames([*(OutputAudioRawFrame(bytes(320), 8000, 1) for _ in range(5)), EndFrame()])
                runner = WorkerRunner(handle_sigint=False)
                await runner.add_workers(worker)
                await runner.run()

            from collections import Counter
            for observers in [(), (Watcher(),), (ProcessWatcher(),), (Watcher(), ProcessWatcher())]:
                for handlers in False, True:
                    seen = Counter()
                    asyncio.run(call(observers, handlers))
                    print(sorted(seen.items()))
            """
        )
        lines = [line for line in printed.splitlines() if line.startswith("[(")]
        assert len(lines) == 8
        assert [line.count("processor") for line in lines] == [1] * 8
        assert ["pushes" in line for line in lines] == [False, False, True, True, False, False, True, True]
        assert ["processing" in line for line in lines] == [False, False, False, False, True, True, True, True]
        assert ["handler" in line for line in lines] == [False, True] * 4


class TestQuickStart:
    def test_observers_see_what_they_have_a_method_for(self) -> None:
        """As often as without the patch."""
        program = """
            import asyncio
            from collections import Counter
            import wsvoice

            wsvoice.install(DISABLED)
            from pipecat.frames.frames import EndFrame
            from pipecat.observers.base_observer import BaseObserver
            from pipecat.pipeline.pipeline import Pipeline
            from pipecat.pipeline.worker import PipelineWorker
            from pipecat.processors.filters.identity_filter import IdentityFilter
            from pipecat.workers.runner import WorkerRunner

            seen = Counter()

            def noting(name):
                async def note(*_):
                    seen[name] += 1
                return note

            class Pushes(BaseObserver):
                on_push_frame = noting("pushes")

            class Processing(BaseObserver):
                on_process_frame = noting("processing")

            class Setups(Processing):
                on_process_frame = BaseObserver.on_process_frame
                on_processor_setup = noting("setups")
                on_pipeline_started = noting("started")

            changed = BaseObserver()
            changed.on_process_frame = noting("changed")

            async def call():
                observers = [Pushes(), Processing(), Setups(), changed]
                worker = PipelineWorker(Pipeline([IdentityFilter()]), observers=observers, enable_rtvi=False)
                await worker.queue_frame(EndFrame())
                runner = WorkerRunner(handle_sigint=False)
                await runner.add_workers(worker)
                await runner.run()

            asyncio.run(call())
            print("seen", sorted(seen.items()))
        """
        without = python(program.replace("DISABLED", "{'quick-start'}"))
        patched = python(program.replace("DISABLED", "()"))
        (line,) = [each for each in patched.splitlines() if each.startswith("seen")]
        assert line in without.splitlines()
        assert [line.count(name) for name in ("pushes", "processing", "setups", "started", "changed")] == [1] * 5

    def test_every_worker_has_the_handlers_of_its_class(self) -> None:
        printed = python(
            """
            import wsvoice

            wsvoice.install()
            from pipecat.pipeline.job_decorator import job
            from pipecat.pipeline.worker_ready_decorator import worker_ready
            from pipecat.workers.base_worker import BaseWorker

            class Working(BaseWorker):
                @job(name="work")
                async def do_work(self, message): ...

                @worker_ready(name="other")
                async def on_other(self, data): ...

            class Idle(BaseWorker): ...

            async def main():
                for _ in range(2):
                    for worker in (Idle(), Working()):
                        print(list(worker._job_handlers), list(worker._worker_ready_handlers))
                        for handler in worker._job_handlers.values():
                            assert handler.__self__ is worker

            import asyncio
            asyncio.run(main())
            """
        )
        lines = [line for line in printed.splitlines() if line.startswith("[")]
        assert lines == ["[] []", "['work'] ['other']"] * 2
