"""
What a scenario may say: the one place from which files are checked, and the JSON Schema for editors is made.

Field descriptions are what an editor shows, and what the table of ``docs/scenarios.md`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from wsvoice.config import Ignored, parse_digits, parse_duration, parse_growth, parse_positive_duration, parse_share
from wsvoice.errors import ConfigError

#: How similar a recording has to be to what was heard; see :meth:`wsvoice.testing.Report.find`.
MIN_CORRELATION = 0.6
#: How often a step may be repeated, and a scenario run.
MAX_REPEATS = 1000

#: Keys of which a step has exactly one, except that `interrupt` goes with what is said.
ACTIONS = ("say", "audio", "press", "wait", "hang_up")


_Value = TypeVar("_Value")


def _duration(value: object) -> float:
    return _read(parse_duration, value)


def _positive_duration(value: object) -> float:
    return _read(parse_positive_duration, value)


def _share(value: object) -> float:
    return _read(parse_share, value)


def _growth(value: object) -> float:
    return _read(parse_growth, value)


def _read(parse: Callable[[object, str], _Value], value: object) -> _Value:
    try:
        return parse(value, "it")
    except ConfigError as error:
        raise ValueError(f"{error.message}{f'; {error.hint}' if error.hint else ''}") from None


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _keys(value: object) -> object:
    keys = _read(parse_digits, value)
    if not keys.strip("w"):
        raise ValueError("at least one key has to be pressed: 0-9, *, # or A-D")
    return keys


_TIME = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|h)?\s*$"}]
}
_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}

_SHARE = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%?\s*$"},
    ]
}
_GROWTH = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%?\s*$"},
    ]
}
_IGNORED_NAMES = {"type": "string", "enum": list(get_args(Ignored))}
_SOME_OF_IGNORED = {"anyOf": [_IGNORED_NAMES, {"type": "array", "items": _IGNORED_NAMES, "minItems": 1}]}

Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema(_TIME)]
PositiveDuration = Annotated[float, BeforeValidator(_positive_duration), WithJsonSchema(_TIME)]
Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(_listed),
    WithJsonSchema(_TEXTS),
]
Keys = Annotated[str, BeforeValidator(_keys), WithJsonSchema({"type": "string", "pattern": "^[0-9*#A-Da-dwW]+$"})]
Text = Annotated[str, Field(min_length=1)]
_Strings = dict[str, Annotated[str, Field()]]
_Share = Annotated[float, BeforeValidator(_share), WithJsonSchema(_SHARE)]
_Growth = Annotated[float, BeforeValidator(_growth), WithJsonSchema(_GROWTH)]
_Ignored = Annotated[
    tuple[Ignored, ...], Field(min_length=1), BeforeValidator(_listed), WithJsonSchema(_SOME_OF_IGNORED)
]
#: Keys that say how calls are compared, and those that say what the caller does.
_OF_REPLAYS = ("adaptive", "max_slower", "min_correlation", "ignore")
_NOT_OF_REPLAYS = ("steps", "greeting", "voice", "listen", "call_timeout", "transcriber")


class _Table(BaseModel):
    """A table of the file: a key that is not known is an error, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Expectations(_Table):
    """What the bot is expected to do in a step. Only what is named is looked at."""

    answered_within: PositiveDuration | None = Field(
        None, description="The most that the caller waits for the bot's first sound after the step."
    )
    heard: Texts | None = Field(
        None, description="Recordings that the bot plays in this step, in this order, found by correlation."
    )
    correlation: float = Field(
        MIN_CORRELATION,
        gt=0,
        le=1,
        description="How similar what was heard has to be to a recording: 1 is the same.",
    )
    says: Texts | None = Field(None, description="Words that the bot says in this step. Needs a transcriber.")
    not_says: Texts | None = Field(None, description="Words that it does not say. Needs a transcriber.")
    silent: PositiveDuration | Literal[True] | None = Field(
        None, description="The bot makes no sound for so long after the step; `true` for as long as a `wait` lasts."
    )
    digits: Annotated[str, Field(pattern=r"^[0-9*#A-D]+$")] | None = Field(
        None, description="The keys that the bot presses in this step, by its provider or as tones."
    )
    ended_by: Literal["bot", "caller"] | None = Field(
        None, description="Who ends the call in this step. The caller stays on the line for the bot to do it."
    )
    transferred: Text | Literal[True] | None = Field(
        None, description="To whom the bot transfers the call in this step; `true` for anybody."
    )
    judge: Text | None = Field(
        None,
        description="What a language model is to find true of the bot's words: 'offers a time on Tuesday'."
        " Left out without a key.",
    )

    @property
    def wants_words(self) -> bool:
        """Whether what was said has to be known in words."""
        return bool(self.says or self.not_says)


class Step(Expectations):
    """
    What the caller does next, and what is expected of the bot then.

    One of `say`, `audio`, `press`, `wait` and `hang_up`.
    """

    say: Text | None = Field(None, description="A text that the caller says. Needs wsvoice[say].")
    audio: Text | None = Field(None, description="A sound file that the caller plays, from the file's folder.")
    press: Keys | None = Field(None, description="Keys that the caller presses; `w` waits half a second.")
    wait: PositiveDuration | None = Field(None, description="The caller listens for so long.")
    hang_up: Literal[True] | None = Field(None, description="The caller hangs up.")
    interrupt: Duration | None = Field(
        None, description="Say or press it when the bot has spoken for so long, and not when it has finished."
    )
    repeat: int = Field(1, ge=1, le=MAX_REPEATS, description="Do the step so many times.")

    @model_validator(mode="after")
    def _check_actions(self) -> Step:
        given = [name for name in ACTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"this one has {' and '.join(given)}" if given else "this one has none"
            raise ValueError(f"a step has one of {', '.join(ACTIONS)}; {said}")
        [action] = given
        if self.interrupt is not None and action in ("wait", "hang_up"):
            raise ValueError(f"`interrupt` goes with what the caller says or presses, not with `{action}`")
        if self.silent is True and action != "wait":
            raise ValueError('`silent = true` goes with `wait`; elsewhere say how long: silent = "2s"')
        if self.silent not in (None, True) and action == "wait":
            raise ValueError("the bot is silent for as long as `wait` lasts: `silent = true`")
        if self.silent is not None and self.answered_within is not None:
            raise ValueError("`silent` and `answered_within` exclude each other")
        if self.hang_up and self.repeat > 1:
            raise ValueError("the caller can hang up once only")
        ends = self.ended_by == "bot" or self.transferred is not None
        if self.silent is not None and ends:
            raise ValueError("`silent` is for a call that goes on")
        if ends and action in ("wait", "hang_up"):
            what = "ended_by" if self.ended_by == "bot" else "transferred"
            raise ValueError(f"`{what}` goes with what the caller says or presses before")
        if self.ended_by == "caller" and not self.hang_up:
            raise ValueError('`ended_by = "caller"` goes with `hang_up`')
        return self

    @property
    def ends_call(self) -> bool:
        """Whether the bot is to end the call in this step."""
        return self.ended_by == "bot" or self.transferred is not None

    @property
    def summary(self) -> str:
        """What the caller does, as messages say it."""
        if self.hang_up:
            return "hang up"
        if self.wait is not None:
            return f"wait {self.wait:g} s"
        text = self.say or self.audio or self.press or ""
        action = "say" if self.say else "audio" if self.audio else "press"
        return f'{action} "{text}"' if len(text) <= 40 else f'{action} "{text[:37]}..."'


class Scenario(_Table):
    """A call: whom it is placed to, how, and what happens in it."""

    model_config = ConfigDict(title="A scenario of wsvoice")

    description: str = Field("", description="What the call is for, in words.")
    bot: Text | None = Field(
        None,
        description="The bot that is called: a file, file.py:function, a module, a folder. [default: bot.py]",
    )
    target: Text | None = Field(None, description="Instead of a bot, the URL of a webhook or a stream.")
    providers: Texts | None = Field(
        None,
        validation_alias=AliasChoices("providers", "provider"),
        description="The providers that are played: each is a test of its own. [default: the project's]",
    )
    from_number: Text | None = Field(None, alias="from", description="Who calls.")
    to_number: Text | None = Field(None, alias="to", description="Who is called.")
    parameters: _Strings = Field(default_factory=dict, description="Parameters for the bot.")
    env: _Strings = Field(default_factory=dict, description="Environment variables for the bot.")
    quirks: _Strings = Field(
        default_factory=dict, description="How the provider deviates; `wsvoice dial --quirk list` lists them."
    )
    voice: Text | None = Field(None, description="Who says the texts: a language or voice of eSpeak NG.")
    language: Annotated[str, Field(pattern="^[a-z]{2,3}$")] | None = Field(
        None, description="The language that a transcriber is told, as two letters. [default: the project's, or en]"
    )
    listen: Duration | None = Field(None, description="How long the bot may take to speak first. [default: 1s]")
    answer_timeout: PositiveDuration | None = Field(
        None, description="How long the caller waits for an answer. [default: 10s]"
    )
    call_timeout: PositiveDuration = Field(300.0, description="How long the call may last.")
    replay: Text | None = Field(
        None, description="The trace of a call that is placed again and compared, instead of steps."
    )
    adaptive: bool = Field(False, description="In a replay, the caller waits for the bot before each turn.")
    max_slower: _Growth | None = Field(
        None, description="In a replay, by how much of itself a wait may be longer. [default: 25%]"
    )
    min_correlation: _Share | None = Field(
        None, description="In a replay, how similar what the bot says has to be. [default: 0.6]"
    )
    ignore: _Ignored | None = Field(None, description="What is not compared in a replay.")
    repeat: int | None = Field(
        None, ge=1, le=MAX_REPEATS, description="How many times the call is placed; `--repeat` goes first. [default: 1]"
    )
    pass_rate: float = Field(1.0, gt=0, le=1, description="How many of the calls have to pass, from 0 to 1.")
    transcriber: Text | None = Field(
        None, description="Who turns speech into words: a name, module:function, or an OpenAI-compatible URL."
    )
    greeting: Expectations | None = Field(
        None, description="What is expected before the caller does anything: it waits for the bot to speak first."
    )
    steps: Annotated[tuple[Step, ...], Field(strict=False)] = Field((), description="What the caller does, in order.")

    @model_validator(mode="after")
    def _check_together(self) -> Scenario:
        if self.bot is not None and self.target is not None:
            raise ValueError("`bot` and `target` exclude each other")
        if self.target is not None and self.env:
            raise ValueError("`env` is for a bot that is served for the call, not for a `target` that runs")
        self._check_replay()
        if greeting := self.greeting:
            for name in ("silent", "ended_by", "transferred"):
                if getattr(greeting, name) is not None:
                    raise ValueError(f"`{name}` goes with a step, not with the greeting")
        for number, step in enumerate(self.steps[:-1], 1):
            if step.hang_up or step.ends_call:
                raise ValueError(f"the call ends in step {number}, and there are steps after it")
        return self

    def _check_replay(self) -> None:
        if self.replay is None:
            if given := [name for name in _OF_REPLAYS if name in self.model_fields_set]:
                raise ValueError(f"`{given[0]}` goes with `replay`")
        elif given := [name for name in _NOT_OF_REPLAYS if name in self.model_fields_set]:
            raise ValueError(f"`replay` and `{given[0]}` exclude each other: the caller does what it did in that call")

    @property
    def called(self) -> str:
        """The bot or the URL that is called."""
        return self.target or self.bot or "bot.py"


def json_schema() -> dict[str, Any]:
    """Return the schema of a scenario's file, for editors."""
    schema = Scenario.model_json_schema(by_alias=True)
    properties = schema["properties"]
    properties["provider"] = properties["providers"]
    schema["oneOf"] = [{"required": ["steps"]}, {"required": ["replay"]}]
    properties["steps"]["minItems"] = 1
    _tidy(schema)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _tidy(node: Any) -> None:
    """Take out of `node` what TOML cannot say, null, and titles that only repeat a key."""
    if isinstance(node, list):
        for each in node:
            _tidy(each)
    elif isinstance(node, dict):
        if isinstance(choices := node.get("anyOf"), list):
            choices = [each for each in choices if each != {"type": "null"}]
            node["anyOf"] = choices
            if len(choices) == 1:
                del node["anyOf"]
                node.update(choices[0])
        if "description" in node or "type" in node:
            node.pop("title", None) if "properties" not in node else None
            if node.get("default", 0) is None:
                del node["default"]
        for each in node.values():
            _tidy(each)
