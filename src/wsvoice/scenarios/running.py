"""Makes a scenario ready, so that nothing is placed that cannot be judged, and places its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wsvoice.audio import read_audio
from wsvoice.config import DialConfig, TestConfig
from wsvoice.dial.quirks import read_behaviour
from wsvoice.dial.report import TimelineEvent
from wsvoice.dial.script import Clip, Keys, Turn, spoken
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.dial.steps import Action, Awaits, StepScript, StepTimes
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import TraceError, UsageError
from wsvoice.providers import load_simulator
from wsvoice.scenarios.loading import Place, ScenarioFile
from wsvoice.scenarios.schema import Expectations, Step
from wsvoice.scenarios.services import Judge
from wsvoice.testing import CallFactory, CallOptions, PlacedCall, Report, find_file
from wsvoice.words import load_transcriber


@dataclass(frozen=True)
class ReadyStep:
    """
    A step that can be carried out and judged.

    Attributes:
        action: What the caller does.
        expected: What the bot is to do.
        sounds: The recordings that are to be heard, by the names in the file.
        words: What the caller says, where it says a text, or the keys that it presses, as ``[12#]``.
        is_answered: Whether the caller waits for an answer, so that its wait is one of the scenario's.
    """

    action: Action
    expected: Expectations
    sounds: Mapping[str, Path]
    words: str = ""
    is_answered: bool = True

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.action.name


@dataclass(frozen=True)
class ReadyScenario:
    """
    A scenario for one provider, of which all that it needs is there.

    Attributes:
        file: The scenario.
        config: How its calls are placed, and who turns what is said into words.
        steps: Its steps, the greeting first, each as often as it is repeated.
        judge: Who judges; ``None`` without a key.
    """

    file: ScenarioFile
    config: DialConfig
    steps: tuple[ReadyStep, ...]
    judge: Judge | None

    @property
    def provider(self) -> str:
        """The provider that is played."""
        return self.config.transport


@dataclass(frozen=True)
class RunCall:
    """A call that was placed: its report, when its steps went on, and what is to be shown of it."""

    report: Report
    times: tuple[StepTimes, ...]
    placed: PlacedCall


def make_ready(file: ScenarioFile, provider: str | None, factory: CallFactory, config: TestConfig) -> ReadyScenario:
    """
    Find everything that a scenario needs.

    Args:
        file: The scenario.
        provider: The provider that is played; ``None`` for the project's.
        factory: Knows where files are looked for, and the project's settings.
        config: How scenarios are run.

    Raises:
        ScenarioError: If something is missing, or cannot be used.
    """
    scenario = file.scenario
    place = "target" if scenario.target else "bot"
    try:
        options = _options(file, provider)
        if scenario.replay is not None:
            dialled = factory.resolve_replay(scenario.replay, scenario.called, options)
        else:
            dialled = factory.resolve(scenario.called, options)
    except TraceError as error:
        raise file.error(error.message, "replay", hint=error.hint) from None
    except UsageError as error:
        message = error.message.replace("-t takes", "`providers` takes", 1)
        is_missing = message.startswith("there is no ")
        hint = "it is looked for beside the scenario, and in the folders above" if is_missing else error.hint
        raise file.error(message, *_blamed(file, error, place), hint=hint) from None
    try:
        read_behaviour(load_simulator(dialled.transport, dialled.credentials, dialled.quirks))
    except UsageError as error:
        raise file.error(error.message, "quirks", hint=error.hint) from None
    steps = tuple(_ready_steps(file, dialled.voice, factory))
    dialled = _with_transcriber(file, dialled, config)
    judge = Judge(config.judge_url, config.judge_model, config.model_key) if config.model_key else None
    for place_of, expected in _expectations(file):
        needs = "judge" if expected.judge and judge else None
        needs = ("says" if expected.says else "not_says") if expected.wants_words else needs
        if needs and dialled.transcriber is None:
            raise file.error(
                f"`{needs}` needs a transcriber, and there is none",
                *place_of,
                needs,
                hint='name one: transcriber = "offline", "openai", a URL, or module:function',
            )
    return ReadyScenario(file, dialled, steps, judge)


def place_call(
    ready: ReadyScenario,
    factory: CallFactory,
    on_event: Callable[[TimelineEvent], None] = lambda event: None,
    *,
    trace: Path | None = None,
) -> RunCall:
    """
    Place the scenario's call and return once it is over.

    Args:
        ready: The scenario.
        factory: Places the call.
        on_event: Called with each event as it happens.
        trace: Where the call's trace is written, ``NAME.call``; ``None`` for nowhere.
    """
    scenario, scripts = ready.file.scenario, list[StepScript]()

    def speaker(detector: SoundDetector, sample_rate: int) -> StepScript:
        script = StepScript(
            [step.action for step in ready.steps],
            detector,
            sample_rate=sample_rate,
            listen_s=ready.config.listen_s,
            response_timeout_s=ready.config.response_timeout_s,
        )
        scripts.append(script)
        return script

    timeouts = Timeouts(call_s=scenario.call_timeout)
    config = replace(ready.config, trace=trace)
    thread = factory.thread(scenario.called, config, speaker=speaker, timeouts=timeouts, on_event=on_event)
    placed = factory.calls[-1]
    placed.trace = trace
    report = thread.run()
    times = tuple(scripts[-1].times) if scripts else ()
    return RunCall(report, times, placed)


def _options(file: ScenarioFile, provider: str | None) -> CallOptions:
    scenario = file.scenario
    # What the caller says is in the steps; a project's own `audio` is for `wsvoice dial`.
    given = {
        "provider": provider,
        "from_number": scenario.from_number,
        "to_number": scenario.to_number,
        "parameters": scenario.parameters or None,
        "env": scenario.env or None,
        "quirks": scenario.quirks or None,
        "voice": scenario.voice,
        "listen_s": scenario.listen,
        "response_timeout_s": scenario.answer_timeout,
        "adaptive": scenario.adaptive or None,
        "max_slower": scenario.max_slower,
        "min_correlation": scenario.min_correlation,
        "ignore": list(scenario.ignore or ()) or None,
    }
    options: CallOptions = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    return options


#: What messages of the settings say, and the key of the scenario that is to blame.
_BLAMED = {"-t ": "providers", "--quirk": "quirks", "--param": "parameters", "--from": "from", "--to": "to"}


def _blamed(file: ScenarioFile, error: UsageError, otherwise: str) -> Place:
    key = next((key for flag, key in _BLAMED.items() if error.message.startswith(flag)), otherwise)
    if key == "providers" and ("provider",) in file.lines:
        key = "provider"
    return (key,)


def _expectations(file: ScenarioFile) -> list[tuple[Place, Expectations]]:
    scenario = file.scenario
    greeting: list[tuple[Place, Expectations]] = [(("greeting",), scenario.greeting)] if scenario.greeting else []
    return [*greeting, *((("steps", number), step) for number, step in enumerate(scenario.steps))]


def _with_transcriber(file: ScenarioFile, dialled: DialConfig, config: TestConfig) -> DialConfig:
    """Return how calls are placed with the transcriber that the scenario names, or else the settings."""
    name = file.scenario.transcriber or config.transcriber or dialled.transcriber
    model = config.transcriber_model or dialled.transcriber_model
    if name is not None:
        try:
            load_transcriber(name, model, config.model_key)
        except UsageError as error:
            raise file.error(error.message, "transcriber", hint=error.hint) from None
    language = file.scenario.language or dialled.language
    return replace(dialled, transcriber=name, transcriber_model=model, language=language, model_key=config.model_key)


def _ready_steps(file: ScenarioFile, voice: str, factory: CallFactory) -> list[ReadyStep]:
    scenario, ready = file.scenario, list[ReadyStep]()
    if scenario.greeting is not None:
        sounds = _find_sounds(file, scenario.greeting, ("greeting",), factory)
        # It lasts until the bot has finished, unless the caller does not let it.
        awaits: Awaits = "answer" if scenario.steps[0].interrupt is None else "nothing"
        ready.append(ReadyStep(Action("greeting", awaits=awaits), scenario.greeting, sounds))
    for number, step in enumerate(scenario.steps):
        place: Place = ("steps", number)
        turn = _turn(file, step, place, voice, factory)
        sounds = _find_sounds(file, step, place, factory)
        following = scenario.steps[number + 1] if number + 1 < len(scenario.steps) else None
        for time in range(step.repeat):
            after = step if time + 1 < step.repeat else following
            again = f", time {time + 1}" if step.repeat > 1 else ""
            name = f"step {number + 1}{again} ({step.summary})"
            action = _action(name, step, turn, is_interrupted=after is not None and after.interrupt is not None)
            is_answered = action.turn is not None and action.awaits in ("answer", "nothing")
            words = step.say or (f"[{step.press}]" if step.press else "")
            ready.append(ReadyStep(action, step, sounds, words, is_answered))
    return ready


def _action(name: str, step: Step, turn: Turn | None, *, is_interrupted: bool) -> Action:
    awaits: Awaits = "nothing" if is_interrupted else "answer"
    wait_s = step.wait
    if step.ends_call:
        awaits = "end"
    elif step.silent is not None and step.silent is not True:
        awaits, wait_s = "silence", step.silent
    return Action(
        name,
        turn,
        interrupt_after_ms=None if step.interrupt is None else step.interrupt * 1000,
        awaits=awaits,
        wait_ms=None if wait_s is None else wait_s * 1000,
        hangs_up=bool(step.hang_up),
    )


def _turn(file: ScenarioFile, step: Step, place: Place, voice: str, factory: CallFactory) -> Turn | None:
    if step.press is not None:
        return Keys(step.press.upper().replace("W", "w"))
    try:
        if step.say is not None:
            return spoken([step.say], voice)[0]
        if step.audio is not None:
            return Clip(step.audio, *read_audio(find_file(step.audio, factory.folders)))
    except UsageError as error:
        raise file.error(error.message, *place, "say" if step.say else "audio", hint=error.hint) from None
    return None


def _find_sounds(file: ScenarioFile, expected: Expectations, place: Place, factory: CallFactory) -> dict[str, Path]:
    sounds = {}
    for number, name in enumerate(expected.heard or ()):
        path = find_file(name, factory.folders)
        try:
            pcm, _ = read_audio(path)
        except UsageError as error:
            raise file.error(error.message, *place, "heard", number, hint=error.hint) from None
        if not any(pcm):
            raise file.error(f"{name} is silent: it cannot be heard", *place, "heard", number)
        sounds[name] = path
    return sounds
