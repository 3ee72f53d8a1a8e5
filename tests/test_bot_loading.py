"""Finding, importing and checking the bot: every mistake has its own message."""

from __future__ import annotations

import asyncio
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.environment import clean_environ
from wsvoice import bot_loading as loading
from wsvoice.bot_loading import load_bot
from wsvoice.errors import BotImportError, BotNotFoundError, WsvoiceError

BOTS = Path(__file__).parent / "bots"
SHAPE = "write `async def bot(runner_args): ...`"


@pytest.fixture(autouse=True)
def clean_imports():
    """Take back what a loaded bot leaves behind: its module, and its folder on the path."""
    path, modules, argv = list(sys.path), set(sys.modules), list(sys.argv)
    yield
    assert sys.argv == argv
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        # Third parties' modules are loaded once; loading them twice is their trouble, not the bot's.
        file = getattr(sys.modules[name], "__file__", None) or ""
        if "site-packages" not in file and "wsvoice" not in name:
            del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    def write(source: str, name: str = "bot.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        return file

    return write


def refusal(spec: str, base: Path) -> WsvoiceError:
    before, name = list(sys.path), Path(spec.partition(":")[0]).stem
    was_loaded = name in sys.modules
    with pytest.raises(WsvoiceError) as caught:
        load_bot(spec, base=base)
    error = caught.value
    assert "\n" not in error.message
    assert sys.path == before, "a bot that is refused leaves the path as it was"
    assert error.exit_code == (1 if isinstance(error, BotImportError) else 2)
    if isinstance(error, BotImportError) and spec.endswith(".py"):
        assert (name in sys.modules) == was_loaded, "a module that failed is forgotten"
    return error


GOOD = "async def bot(runner_args):\n    return 'ran'\n"


def call(loaded: loading.LoadedBot) -> object:
    async def run() -> object:
        return await loaded.function(SimpleNamespace())

    return asyncio.run(run())


# -- What is a bot --


@pytest.mark.parametrize("spec", ["bot.py", "bot.py:bot", "./bot.py", ".", "bot", ":bot"])
def test_ways_to_name_the_same_bot(write, tmp_path, spec):
    file = write(GOOD)
    loaded = load_bot(spec, base=tmp_path)
    assert loaded.path == file.resolve()
    assert loaded.name == "bot.py"
    assert loaded.module.__name__ == "bot"
    assert sys.modules["bot"] is loaded.module
    assert call(loaded) == "ran"


def test_an_absolute_path_and_another_function(write):
    file = write("async def agent(runner_args):\n    return 'agent'\n")
    loaded = load_bot(f"{file}:agent")
    assert loaded.name == "bot.py:agent"
    assert call(loaded) == "agent"


def test_a_folder_has_a_bot_file(write, tmp_path):
    write(GOOD, "my-bot/bot.py")
    assert call(load_bot("my-bot", base=tmp_path)) == "ran"
    assert call(load_bot("my-bot:bot", base=tmp_path)) == "ran"


def test_a_module_of_a_package(write, tmp_path):
    write("", "acme_phone/__init__.py")
    write("NAME = 'acme'\n", "acme_phone/names.py")
    write("from .names import NAME\nasync def agent(args):\n    return NAME\n", "acme_phone/support.py")
    loaded = load_bot("acme_phone.support:agent", base=tmp_path)
    assert loaded.name == "acme_phone.support:agent"
    assert loaded.path == tmp_path / "acme_phone" / "support.py"
    assert call(loaded) == "acme"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (r"C:\bots\bot.py", (r"C:\bots\bot.py", "bot")),
        (r"C:\bots\bot.py:agent", (r"C:\bots\bot.py", "agent")),
        ("C:/bots/bot.py", ("C:/bots/bot.py", "bot")),
        ("C:bot.py", ("C:bot.py", "bot")),
        ("C:bot.py:agent", ("C:bot.py", "agent")),
        ("pkg.module:agent", ("pkg.module", "agent")),
    ],
)
def test_the_colon_of_a_drive_names_no_function(tmp_path, spec, expected):
    assert loading._split(spec, tmp_path) == expected


def test_the_file_imports_what_stands_beside_it_and_may_use_pickle_and_dataclasses(write, tmp_path):
    write("GREETING = 'hello'\n", "acme_prompts.py")
    write(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, KW_ONLY\n"
        "import acme_prompts\n"
        "@dataclass\n"
        "class Order:\n"
        "    _: KW_ONLY\n"
        "    item: str = acme_prompts.GREETING\n"
        "async def bot(args):\n"
        "    return Order()\n"
    )
    order = call(load_bot("bot.py", base=tmp_path))
    assert pickle.loads(pickle.dumps(order)) == order
    assert sys.path[0] == str(tmp_path)


def test_a_bot_as_pipecat_shows_it_loads_and_its_main_does_not_run():
    loaded = load_bot("main_guard.py", base=BOTS)
    assert loaded.module.__name__ == "main_guard"
    assert loaded.function is loaded.module.bot


def test_a_bot_sees_a_command_line_of_its_own(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["wsvoice", "run", "bot.py", "-t", "twilio"])
    write(
        "import argparse\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--voice', default='low')\n"
        "VOICE = parser.parse_args().voice\n" + GOOD
    )
    assert load_bot("bot.py", base=tmp_path).module.VOICE == "low"
    assert sys.argv == ["wsvoice", "run", "bot.py", "-t", "twilio"]


def test_work_that_ends_may_be_run_while_importing(write, tmp_path):
    write("import asyncio\nasync def load():\n    return 7\nSEVEN = asyncio.run(load())\n" + GOOD)
    assert load_bot("bot.py", base=tmp_path).module.SEVEN == 7


def test_loading_again_reads_the_file_again(write, tmp_path):
    write(GOOD)
    assert call(load_bot("bot.py", base=tmp_path)) == "ran"
    write("async def bot(runner_args):\n    return 'ran the second'\n")
    assert call(load_bot("bot.py", base=tmp_path)) == "ran the second"


@pytest.mark.parametrize(
    "source",
    [
        "async def bot(args, *, voice='low'): return 'ran'",
        "async def bot(args, voice='low'): return 'ran'",
        "async def bot(*args): return 'ran'",
        "import functools\nasync def talk(voice, args): return 'ran'\nbot = functools.partial(talk, 'low')",
        "class Bot:\n    async def __call__(self, args): return 'ran'\nbot = Bot()",
        "class Bot:\n    async def run(self, args): return 'ran'\nbot = Bot().run",
        "import functools\n"
        "def logged(function):\n"
        "    @functools.wraps(function)\n"
        "    def wrapper(*args):\n"
        "        return function(*args)\n"
        "    return wrapper\n"
        "@logged\n"
        "async def bot(args): return 'ran'",
        "import functools\n"
        "def with_voice(function):\n"
        "    @functools.wraps(function)\n"
        "    async def wrapper(args):\n"
        "        return await function(args, 'low')\n"
        "    return wrapper\n"
        "@with_voice\n"
        "async def bot(args, voice): return 'ran'",
    ],
)
def test_shapes_of_a_bot(write, tmp_path, source):
    write(source)
    assert call(load_bot("bot.py", base=tmp_path)) == "ran"


# -- What is none --


def test_a_missing_file_names_its_neighbours_nearest_first(write, tmp_path):
    for name in ("zebra.py", "bot_two.py", "notes.txt"):
        write(GOOD, name)
    error = refusal("bot.py", tmp_path)
    assert isinstance(error, BotNotFoundError)
    assert error.message == "there is no file bot.py"
    assert error.hint == "there is `bot_two.py`, `zebra.py`"


def test_a_missing_file_names_files_that_hold_a_bot_and_bot_py_first(write, tmp_path):
    for name in ("a.py", "ab.py", "ba.py", "bot.py", "missin.py"):
        write(GOOD, name)
    write("import os\n", "missing_.py")
    write("def bot(x): ...\nrobot = 1\n# async def bot\n", "missing2.py")
    write("from somewhere import bot\n", "passes_on.py")
    write("bot: object = make()\n", "made.py")
    (tmp_path / "missing3.py").mkdir()
    hint = refusal("missing.py", tmp_path).hint
    assert hint == "there is `bot.py`, `missin.py`, `passes_on.py`, `made.py`, `a.py` and 2 more"
    assert refusal("missing.py", tmp_path).hint == hint


def test_a_missing_file_in_an_empty_folder(tmp_path):
    hint = "a bot is a Python file with `async def bot(runner_args): ...`; `wsvoice init` makes one"
    assert refusal("bot.py", tmp_path).hint == hint


def test_a_missing_folder(tmp_path):
    assert refusal("nowhere/bot.py", tmp_path).message == ("there is no file nowhere/bot.py: its folder does not exist")


def test_a_folder_without_a_bot(write, tmp_path):
    write(GOOD, "bots/agent.py")
    error = refusal("bots", tmp_path)
    assert error.message == "the folder bots has no bot.py"
    assert error.hint == "there is `agent.py`"


def test_not_a_python_file(write, tmp_path):
    write("{}", "bot.json")
    write(GOOD)
    error = refusal("bot.json", tmp_path)
    assert error.message == "bot.json is not a Python file"
    assert error.hint == "there is `bot.py`"


@pytest.mark.parametrize("spec", ["bot.py:", "bot.py:my-bot", "bot.py:1"])
def test_a_colon_without_a_function(write, tmp_path, spec):
    write(GOOD)
    error = refusal(spec, tmp_path)
    assert error.message == f"{spec!r} names no function after the colon"


def test_nothing_is_named(tmp_path):
    assert refusal(" ", tmp_path).message == "no bot is named"


def test_no_bot_in_the_file():
    error = refusal("no_bot.py", BOTS)
    assert error.message == "no_bot.py has no coroutine function named `bot`"
    assert error.hint == "add `async def bot(runner_args): ...`"


def test_a_misspelt_bot_is_suggested():
    error = refusal("misspelt.py", BOTS)
    assert error.message == "misspelt.py has no coroutine function named `bot`"
    assert error.hint == "add `async def bot(runner_args): ...`, or run `wsvoice run misspelt.py:bott`"


def test_another_function_that_is_not_there():
    error = refusal("misspelt.py:warmup", BOTS)
    assert error.message == "misspelt.py has no coroutine function named `warmup`"
    assert error.hint == "add `async def warmup(runner_args): ...`, or run `wsvoice run misspelt.py:warm_up`"


def test_a_plain_function():
    error = refusal("plain_function.py", BOTS)
    assert error.message == "`bot` in plain_function.py is a plain function, not a coroutine function"
    assert error.hint == SHAPE


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("bot = 7", "is a value of type int, not a coroutine function"),
        ("import json as bot", "is a module, not a coroutine function"),
        ("class bot:\n    async def __call__(self, args): ...", "is a class, not a coroutine function"),
        ("async def bot(args):\n    yield 1", "yields, which makes it a generator, not a coroutine function"),
        (
            "class Bot:\n    async def __call__(self, args):\n        yield 1\nbot = Bot()",
            "yields, which makes it a generator, not a coroutine function",
        ),
        (
            "import functools\nasync def talk(args, more):\n    yield 1\nbot = functools.partial(talk, 1)",
            "yields, which makes it a generator, not a coroutine function",
        ),
        ("bot = lambda args: None", "is a plain function, not a coroutine function"),
        ("bot = print", "is a plain function, not a coroutine function"),
    ],
)
def test_other_things_called_bot(write, tmp_path, source, what):
    write(source)
    error = refusal("bot.py", tmp_path)
    assert error.message == f"`bot` in bot.py {what}"
    assert "async def bot(runner_args): ..." in (error.hint or "")


def test_the_wrong_number_of_arguments():
    error = refusal("wrong_arity.py", BOTS)
    assert error.message == (
        "`bot` in wrong_arity.py cannot be called with one argument: it is `bot(transport, context)`"
    )
    assert error.hint == SHAPE


@pytest.mark.parametrize("parameters", ["", "*, args", "a, b", "a, *, b"])
def test_other_wrong_numbers_of_arguments(write, tmp_path, parameters):
    write(f"async def bot({parameters}): ...")
    assert f"it is `bot({parameters})`" in refusal("bot.py", tmp_path).message


# -- Modules --


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("acme_nothing", "there is no module 'acme_nothing', and no file of that name"),
        ("acme_nothing.bot", "there is no module 'acme_nothing.bot': there is no 'acme_nothing'"),
        ("acme_shop.bot", "there is no module 'acme_shop.bot', and no file of that name"),
        ("no-module", "there is no bot 'no-module': it is neither a file nor the name of a module"),
        ("..", "the folder .. has no bot.py"),
    ],
)
def test_a_missing_module(write, tmp_path, spec, message):
    write("", "below/acme_shop/__init__.py")
    error = refusal(spec, tmp_path / "below")
    assert isinstance(error, BotNotFoundError)
    assert error.message == message


def test_a_module_that_is_missing_inside_the_bot_is_another_matter(write, tmp_path):
    write("", "acme_office/__init__.py")
    write("import acme_office.prompts\n" + GOOD, "acme_office/desk.py")
    error = refusal("acme_office.desk", tmp_path)
    assert isinstance(error, BotImportError)
    assert error.message == "desk.py imports `acme_office.prompts`, and acme_office/prompts.py is missing"


# -- What fails while it is imported --


def test_a_missing_dependency():
    error = refusal("missing_dependency.py", BOTS)
    assert isinstance(error, BotImportError)
    assert error.message == "missing_dependency.py imports `acme_speech_services`, which is not installed"
    assert error.hint == "pip install acme_speech_services"
    assert error.details == ""


def test_a_missing_dependency_of_a_file_beside_the_bot(write, tmp_path):
    write("import acme_brain\n", "acme_helpers.py")
    write("import acme_helpers\n" + GOOD)
    assert refusal("bot.py", tmp_path).message == "acme_helpers.py imports `acme_brain`, which is not installed"


def test_a_file_of_the_bots_own_that_is_gone_is_not_looked_for_on_pypi(write, tmp_path):
    write("import acme_desk\n" + GOOD)
    compiled = write("", "__pycache__/acme_desk.cpython-311.pyc")
    error = refusal("bot.py", tmp_path)
    assert error.message == "bot.py imports `acme_desk`, and acme_desk.py is missing"
    assert error.hint.startswith("it was there once: __pycache__/acme_desk.cpython-311.pyc is left of it;")
    compiled.rename(compiled.with_name("acme_desks.cpython-311.pyc"))
    assert refusal("bot.py", tmp_path).hint == "pip install acme_desk"


@pytest.mark.parametrize("line", ["from .acme_desk import hours", "    from . import menu, acme_desk"])
def test_a_file_that_another_imports_relatively_is_the_projects(write, tmp_path, line):
    write("import acme_desk\n" + GOOD)
    write(f"def later():\n    pass\n{line}\n", "office.py")
    error = refusal("bot.py", tmp_path)
    assert error.message == "bot.py imports `acme_desk`, and acme_desk.py is missing"
    assert error.hint.startswith("office.py takes it for a file beside it")


def test_a_file_that_is_gone_from_a_folder_of_the_bots_own(write, tmp_path):
    write("", "acme_rooms/__init__.py")
    write("import acme_rooms.desk\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert error.message == "bot.py imports `acme_rooms.desk`, and acme_rooms/desk.py is missing"
    assert error.hint == "put it back, or correct the name: the folder acme_rooms is there"


def test_the_distribution_of_a_module_may_have_another_name(write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    write("import yaml\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert (error.message, error.hint) == ("bot.py imports `yaml`, which is not installed", "pip install pyyaml")


def test_a_missing_pipecat_service_names_the_extra(write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepgram", None)
    monkeypatch.delitem(sys.modules, "pipecat.services.deepgram.stt", raising=False)
    write("from pipecat.services.deepgram.stt import DeepgramSTTService\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert error.message == (
        "bot.py imports `pipecat.services.deepgram.stt`, which needs `deepgram`, and that is not installed"
    )
    assert error.hint == 'pip install "pipecat-ai[deepgram]"'


def test_a_module_that_an_installed_package_does_not_have(write, tmp_path):
    write("import pipecat.services.telepathy\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert error.message.startswith("bot.py imports `pipecat.services.telepathy`, which pipecat 1.")
    assert error.message.endswith(" does not have")


def test_a_name_that_a_module_does_not_have(write, tmp_path):
    write("from json import telepathy\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert error.message.startswith("bot.py failed while it was imported: ImportError: cannot import name")


def test_a_bot_that_shadows_what_it_imports(write, tmp_path):
    write("from acme_tts import Voice\n" + GOOD, "acme_tts.py")
    error = refusal("acme_tts.py", tmp_path)
    assert error.hint == "it imports itself: give the file a name that none of its imports has"


@pytest.mark.parametrize("body", ["import sqlite3.dbapi2\n", "from sqlite3 import Connection\n"])
@pytest.mark.parametrize("bot", ["sqlite3.py", "bot.py"])
def test_a_file_that_hides_a_library(write, tmp_path, monkeypatch, bot, body):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sqlite3"]:
        monkeypatch.delitem(sys.modules, name)
    write(GOOD, "sqlite3.py")
    write(body + GOOD, bot)
    error = refusal(bot, tmp_path)
    monkeypatch.delitem(sys.modules, "sqlite3", raising=False)
    assert error.message.startswith(f"{bot} failed while it was imported: ")
    assert error.hint == (
        "it imports itself: give the file a name that none of its imports has"
        if bot == "sqlite3.py"
        else "sqlite3.py hides the library of that name: give the file another name"
    )


def test_a_library_whose_name_is_misspelt(write, tmp_path):
    write("import pipecta\n" + GOOD)
    assert refusal("bot.py", tmp_path).hint == "did you mean `pipecat`?"
    write("import wsvoce\n" + GOOD)
    assert refusal("bot.py", tmp_path).hint == "did you mean `wsvoice`?"


@pytest.mark.parametrize(
    ("source", "what"), [("name = input('Name? ')\n", "input()"), ("import getpass\ngetpass.getpass()\n", "getpass()")]
)
def test_a_bot_that_waits_for_somebody_to_type(write, tmp_path, source, what):
    write(source + GOOD)
    error = refusal("bot.py", tmp_path)
    assert isinstance(error, BotImportError)
    line = source.count("\n")
    assert error.message == (
        f"bot.py waits for somebody to type while it is imported: it calls {what} (bot.py, line {line})"
    )
    assert "os.environ" in (error.hint or "")
    assert error.details == ""


def test_what_is_no_exception_is_told_as_one(write, tmp_path):
    write("class Gone(BaseException): ...\nraise Gone('away')\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert error.message == "bot.py failed while it was imported: Gone: away"


def test_a_file_that_is_not_utf_8(write, tmp_path):
    (tmp_path / "bot.py").write_bytes(b'x = "\xe9"\n' + GOOD.encode())
    assert refusal("bot.py", tmp_path).hint == "save the file as UTF-8"


def test_a_bot_with_the_name_of_a_module_in_use(write, tmp_path):
    import json

    write(GOOD, "json.py")
    error = refusal("json.py", tmp_path)
    assert error.message == "json.py has the name of a module that is in use: `json`"
    assert error.hint == "give the file another name, for example `json_bot.py`"
    assert sys.modules["json"] is json


def test_a_relative_import_in_a_file(write, tmp_path):
    write("from . import prompts\n" + GOOD)
    assert refusal("bot.py", tmp_path).hint == "run it as a module of its package: `wsvoice run package.module`"


def test_an_error_in_the_bot_shows_the_bots_own_traceback():
    error = refusal("import_error.py", BOTS)
    assert isinstance(error, BotImportError)
    assert error.message == "import_error.py failed while it was imported: KeyError: 'greeting'"
    lines = error.details.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    files = [line for line in lines if line.startswith("  File ")]
    assert files == [
        f'  File "{BOTS / "import_error.py"}", line 8, in <module>',
        f'  File "{BOTS / "import_error.py"}", line 5, in load_prompts',
    ]
    assert lines[-1] == "KeyError: 'greeting'"


def test_frames_of_the_import_system_are_left_out_wherever_they_are(write, tmp_path):
    write(
        "import importlib\ntry:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('no') from e\n",
        "acme_inner.py",
    )
    write("import importlib\nimportlib.import_module('acme_inner')\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert isinstance(error, BotImportError)
    assert error.details.count("  File ") == 3
    assert "importlib/__init__.py" not in error.details
    assert "ZeroDivisionError" in error.details


@pytest.mark.parametrize(
    ("source", "line"), [("async def bot(runner_args)\n    pass\n", 1), ("x = 1\nif x:\npass\n", 3)]
)
def test_a_syntax_error_shows_its_place(write, tmp_path, source, line):
    file = write(source)
    error = refusal("bot.py", tmp_path)
    assert isinstance(error, BotImportError)
    assert error.message.startswith(f"bot.py, line {line} is not valid Python: ")
    assert f'File "{file}", line {line}' in error.details
    assert "^" in error.details
    assert "Traceback" not in error.details


def test_a_bot_that_exits():
    error = refusal("exits.py", BOTS)
    assert isinstance(error, BotImportError)
    assert error.message == ("exits.py stops while it is imported: ACME_API_KEY is not set (exits.py, line 5)")
    assert "__main__" in (error.hint or "")


@pytest.mark.parametrize(("code", "reason"), [("", "0"), ("0", "0"), ("3", "3"), ("None", "0"), ("''", "0")])
def test_a_bot_that_exits_without_a_word(write, tmp_path, code, reason):
    write(f"import sys\nsys.exit({code})\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert error.message == f"bot.py stops while it is imported: it exits with code {reason} (bot.py, line 2)"
    assert (error.hint or "").startswith("put it under")


TEMPLATES = Path(__file__).parents[1] / "templates"
NO_KEY = (
    r"bot\.py stops while it is imported: .*OPENAI_API_KEY must be set, in \.env for example;"
    r" BOT_FAKES=1 does without \(services\.py, line \d+\)"
)


def test_a_template_without_its_keys_says_so_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "wsvoice", "run", "bot.py", "--port", "0"],
        cwd=TEMPLATES / "assistant",
        env=clean_environ(OPENAI_API_KEY="", BOT_FAKES=""),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert re.fullmatch(f"error: {NO_KEY}", error)
    assert hint.startswith("hint:  ")


def test_so_does_the_other_template(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("BOT_FAKES", "")
    error = refusal("bot.py", TEMPLATES / "realtime")
    assert re.fullmatch(NO_KEY, error.message)
    assert error.hint


def test_a_bot_that_reads_a_command_line_it_is_not_given(write, tmp_path, capsys):
    write("import argparse\np = argparse.ArgumentParser()\np.add_argument('voice')\np.parse_args()\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert error.message == "bot.py stops while it is imported: it reads its command line (bot.py, line 4)"


def test_a_bot_without_a_main_guard(write, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # pipecat would run it, and everything else in the folder, to look for a bot.
    write("open('ran', 'w').close()\n", "bystander.py")
    error = refusal("runs_at_import.py", BOTS)
    assert isinstance(error, BotImportError)
    assert error.message == (
        "runs_at_import.py starts to run while it is imported: it calls pipecat's main() (runs_at_import.py, line 10)"
    )
    assert error.hint == 'put it under `if __name__ == "__main__":`, which wsvoice does not run'
    assert not (tmp_path / "ran").exists()
    assert capsys.readouterr().out == ""


def test_a_server_that_is_started_at_import(write, tmp_path):
    write("import uvicorn\n\n\nuvicorn.run(None)\n" + GOOD)
    assert "it calls uvicorn.run() (bot.py, line 4)" in refusal("bot.py", tmp_path).message


@pytest.mark.parametrize(
    "body",
    [
        "await asyncio.Event().wait()",
        # A server that is cancelled stops as if it had been asked to.
        "try:\n        await asyncio.Event().wait()\n    except asyncio.CancelledError:\n        pass",
    ],
)
def test_a_loop_that_does_not_end(write, tmp_path, monkeypatch, body):
    monkeypatch.setattr(loading, "IMPORT_RUN_LIMIT_S", 0.05)
    run = asyncio.run
    write(f"import asyncio\nasync def serve():\n    {body}\n\nasyncio.run(serve())\n" + GOOD)
    error = refusal("bot.py", tmp_path)
    assert "it calls asyncio.run() (bot.py, line " in error.message
    assert asyncio.run is run


def test_ctrl_c_is_not_the_bots_fault(write, tmp_path):
    write("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_bot("bot.py", base=tmp_path)


def test_a_bot_does_not_take_the_signals_while_it_is_imported(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    (tmp_path / "bot.py").write_text(
        "import signal\n"
        "from signal import SIGINT, SIGTERM, SIG_IGN, signal as handle\n"
        "signal.signal(SIGINT, SIG_IGN)\n"
        "handle(SIGTERM, SIG_IGN)\n"
        "async def bot(runner_args):\n"
        "    handle(SIGINT, SIG_IGN)\n"
    )
    try:
        bot = load_bot(str(tmp_path / "bot.py"))
        # What it has kept is no way to them later either.
        asyncio.run(bot.function(None))
        assert {number: signal.getsignal(number) for number in before} == before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
