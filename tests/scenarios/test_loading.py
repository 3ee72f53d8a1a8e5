"""What is wrong with a scenario's file is said with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsvoice.errors import ScenarioError
from wsvoice.scenarios.loading import find_lines, read_scenario
from wsvoice.scenarios.schema import Scenario, Step, json_schema

GOOD = """
#:schema call.schema.json
bot = "bot.py"
providers = ["twilio", "telnyx"]
from = "+15551234567"
parameters = { language = "es" }

[greeting]
answered_within = "800ms"

[[steps]]
say = "Hello"  # a comment
says = ["good morning", "help"]

[[steps]]
interrupt = 0.5
say = "Stop"
repeat = 2

[[steps]]
hang_up = true
ended_by = "caller"
"""


def read(text: str, folder: Path) -> ScenarioError:
    path = folder / "a.call.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_scenario(path)
    assert str(caught.value.message).startswith(str(path))
    caught.value.message = caught.value.message.removeprefix(f"{path}:")
    return caught.value


def test_a_scenario_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.call.toml"
    path.write_text(GOOD)
    file = read_scenario(path)
    scenario = file.scenario
    assert scenario.from_number == "+15551234567"
    assert scenario.greeting is not None
    assert scenario.greeting.answered_within == 0.8
    assert [step.summary for step in scenario.steps] == ['say "Hello"', 'say "Stop"', "hang up"]
    assert scenario.steps[0].says == ("good morning", "help")
    assert (file.lines["steps", 1, "say"], file.name) == (17, "good")


@pytest.mark.parametrize(
    ("before", "after", "message", "hint"),
    [
        ('bot = "bot.py"', 'bott = "bot.py"', "3: a scenario has no key 'bott'", "did you mean `bot`?"),
        ("says =", "sayz =", "13: step 1 has no key 'sayz'", "did you mean `say`?"),
        ("answered_within", "anwsered_within", "9: the greeting has no key 'anwsered_within'", "`answered_within`"),
        ('"800ms"', '"fast"', "9: the greeting: answered_within cannot be 'fast'", ""),
        ("repeat = 2", "repeat = 0", "18: step 2: repeat cannot be 0", ""),
        (
            "repeat = 2",
            "press = '1'",
            "15: step 2: a step has one of say, audio, press, wait, hang_up; this one has",
            "",
        ),
        ("repeat = 2", "silent = true", "15: step 2: `silent = true` goes with `wait`", ""),
        ('say = "Stop"', "say = Stop", "17: this is not TOML", "in quotes"),
        ('bot = "bot.py"', 'bot = "bot.py"\ntarget = "http://x/"', "`bot` and `target` exclude each other", ""),
        ("[[steps]]", "[[stepz]]", "11: a scenario has no key 'stepz'", "did you mean `steps`?"),
        ('"es" }', "3 }", "6: parameters cannot be 3", ""),
        ('bot = "bot.py"', 'bot = "bot.py"\nlisten = "1x"', "listen cannot be '1x': it takes a duration", "seconds"),
        ('say = "Stop"', 'press = "12x"', "press cannot be '12x'", 'press = "1w2#"'),
    ],
)
def test_what_is_wrong_is_named_with_its_line(before: str, after: str, message: str, hint: str, tmp_path: Path) -> None:
    assert before in GOOD
    error = read(GOOD.replace(before, after), tmp_path)
    assert message in error.message
    assert hint in (error.hint or "")


def test_a_step_after_the_end_of_the_call_is_refused(tmp_path: Path) -> None:
    error = read('[[steps]]\nhang_up = true\n[[steps]]\nsay = "hello?"\n', tmp_path)
    assert "the call ends in step 1, and there are steps after it" in error.message


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (1 << 21)])
def test_what_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.call.toml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=r"a\.call\.toml"):
        read_scenario(path)


def test_lines_of_every_way_to_write_a_key() -> None:
    lines = find_lines(
        'a.b = 1\n"c d" = [\n  1,\n  {e = 2},\n]\n[f]\n[f.g]\nh = 3\n[[i]]\n[i.j]\nk = 4\n[[i]]\nl = 5\n'
    )
    assert lines["a", "b"] == 1
    assert (lines["c d", 1], lines["c d", 1, "e"]) == (4, 4)
    assert lines["f", "g", "h"] == 8
    assert (lines["i", 0, "j", "k"], lines["i", 1, "l"]) == (11, 13)


def test_the_published_schema_takes_what_is_read_and_refuses_what_is_not() -> None:
    import tomllib

    import jsonschema

    schema = json.loads(json.dumps(json_schema()))
    validator = jsonschema.Draft7Validator(schema)
    jsonschema.Draft7Validator.check_schema(schema)
    assert list(validator.iter_errors(tomllib.loads(GOOD))) == []
    for wrong in (GOOD.replace("says", "sayz"), GOOD.replace("repeat = 2", "repeat = 0"), "bot = 'bot.py'"):
        assert list(validator.iter_errors(tomllib.loads(wrong)))


def test_the_docs_have_the_schema_and_every_key() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert json.loads((docs / "call.schema.json").read_text()) == json_schema(), "run `python docs/generate.py`"
    page = (docs / "scenarios.md").read_text()
    for model in (Scenario, Step):
        for name, field in model.model_fields.items():
            assert f"| `{field.alias or name}` | {field.description} |" in page
