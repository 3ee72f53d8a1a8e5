"""
Which module may import which, and who alone may print, exit or read the environment.

Every import of the package is read from its source, those inside of functions included. What stands under
``if TYPE_CHECKING`` loads nothing at run time, so it may name any library; it must keep our own directions.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import wsvoice

PACKAGE = Path(wsvoice.__file__).parent

#: What each layer may import of ours. The package itself (``import wsvoice``) is for users: no layer imports it.
OURS = {
    "_version": (),
    "errors": (),
    "call": (),
    "pipecat_moved": (),
    "pipecat_contracts": ("errors",),
    "audio": ("audio", "errors"),
    "providers": ("providers", "errors", "call", "audio"),
    "config": ("config", "errors", "providers"),
    "http": ("errors", "providers"),
    "trace": ("trace", "errors", "call", "audio"),
    "phone": ("phone", "providers", "http", "config", "call", "errors"),
    "isolation": (),
    "bot_loading": ("config", "errors", "isolation"),
    "runner": (
        *(
            "runner",
            "phone",
            "bot_loading",
            "isolation",
            "providers",
            "config",
            "http",
            "audio",
            "call",
            "errors",
            "pipecat_moved",
            "trace",
            "_version",
        ),
        "pipecat_contracts",
    ),
    "dial": (
        *("dial", "trace", "_version", "bot_loading", "isolation", "speech", "providers", "config", "http", "audio"),
        *("call", "errors", "words"),
        "pipecat_contracts",
    ),
    "doctor": (
        *("doctor", "dial", "phone", "bot_loading", "providers", "config", "http", "audio", "call", "errors"),
        "pipecat_contracts",
    ),
    "speech": ("errors",),
    "words": ("words", "config", "http", "providers", "audio", "errors"),
    "replay": ("replay", "dial", "trace", "providers", "config", "audio", "call", "errors"),
    "testing": ("replay", "trace", "dial", "config", "isolation", "audio", "errors"),
    "scenarios": (
        *("scenarios", "replay", "testing", "dial", "trace", "providers", "config", "http", "audio"),
        *("call", "errors", "words"),
    ),
    "page": ("page", "trace", "audio", "call", "errors"),
    "browser_phone": (
        *("browser_phone", "dial", "page", "trace", "scenarios", "providers", "config", "http", "audio", "call"),
        *("errors", "_version"),
    ),
    "pytest_plugin": ("testing", "scenarios", "errors"),
    "scaffold": ("config", "providers", "errors"),
    "deploy": ("deploy", "config"),
    "cli": (
        "cli",
        "deploy",
        "browser_phone",
        "bot_loading",
        "isolation",
        "runner",
        "dial",
        "doctor",
        "phone",
        "page",
        "replay",
        "scenarios",
        "scaffold",
        "speech",
        "trace",
        "providers",
        "config",
        "http",
        "audio",
        "call",
        "errors",
        "_version",
    ),
    "__main__": ("cli",),
    "wsvoice": ("runner", "providers", "config", "call", "pipecat_moved", "_version"),
}

#: Modules of the standard library that neither do I/O nor look at a clock, a network, the system or chance.
# fmt: off
PURE = frozenset({
    "__future__", "abc", "base64", "binascii", "bisect", "codecs", "collections", "collections.abc", "copy",
    "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "hmac", "html",
    "importlib", "importlib.resources",
    "itertools", "json", "math", "operator", "re", "shlex", "string", "struct", "textwrap", "types",
    "typing", "urllib.parse", "uuid", "xml.etree.ElementTree", "xml.sax.saxutils",
    "zlib",
})
# fmt: on

#: The only libraries, beside the standard one, for the layers that are to be as light as they are.
OUTSIDE = {
    "_version": (),
    "errors": (),
    "call": (),
    "pipecat_moved": (),
    "pipecat_contracts": (),
    "audio": ("numpy", "audioop", "soundfile"),
    "providers": ("cryptography", "jwt"),
    "trace": ("numpy",),
    "page": ("numpy",),
    "config": ("dotenv", "platformdirs"),
    "http": ("httpx", "httpcore", "anyio"),
    "scaffold": (),
    "deploy": ("yaml",),
    "__main__": (),
    "wsvoice": (),
}

#: Layers of which even the standard library's I/O is kept.
PURE_LAYERS = ("errors", "call", "providers", "deploy", "page")

#: Of the providers, what plays a company in a test call, and what answers a company's calls: neither knows the other.
SIMULATORS = re.compile(
    r"wsvoice\.providers\.(\w+\.(simulator|fake_api|fake_account)|xml_answer|hazards|fake_api|fake_account)(\.|$)"
)
SERVERS = re.compile(r"wsvoice\.providers\.(\w+\.(server|account)|xml_writer|callbacks|account)(\.|$)")


#: Each library's place: the modules, or packages, that may import it; in all others it is out of bounds.
PLACES = {
    "pipecat": ("wsvoice.runner.pipecat", "wsvoice.dial.caller_bot"),
    "fastapi": ("wsvoice.runner",),
    "starlette": ("wsvoice.runner", "wsvoice.browser_phone"),
    "uvicorn": ("wsvoice.runner", "wsvoice.bot_loading", "wsvoice.browser_phone"),
    "loguru": ("wsvoice.runner", "wsvoice.phone", "wsvoice.browser_phone"),
    "pyngrok": ("wsvoice.phone.tunnels", "wsvoice.doctor.ngrok"),
    "httpx": ("wsvoice.http",),
    "redis": ("wsvoice.runner.shared_memory",),
    "requests": (),
    "aiohttp": (),
    "dotenv": ("wsvoice.config",),
    "platformdirs": ("wsvoice.config.state",),
    "tomllib": ("wsvoice.config", "wsvoice.scaffold", "wsvoice.scenarios.loading"),
    "tree_sitter": ("wsvoice.scenarios.loading",),
    "tree_sitter_toml": ("wsvoice.scenarios.loading",),
    "espeakng_loader": ("wsvoice.speech",),
    "faster_whisper": ("wsvoice.words.offline",),
    "pytest": ("wsvoice.pytest_plugin", "wsvoice.scenarios.items", "wsvoice.cli.call_tests"),
    "watchfiles": ("wsvoice.runner.source_watch",),
    "typer": ("wsvoice.cli",),
    "click": ("wsvoice.cli",),
    "rich": ("wsvoice.cli.output", "wsvoice.cli.live_view"),
    "prometheus_client": ("wsvoice.runner.metrics",),
    "opentelemetry": ("wsvoice.runner.telemetry",),
}

#: Who may use what nobody else may, and why.
EXCEPTIONS = {
    "environment": {
        "wsvoice.cli.run": "hands the process's environment to config, and the bot what .env says",
        "wsvoice.cli.doctor": "hands the process's environment to config, and to the checks",
        "wsvoice.cli.dial": "hands the process's environment to config, and a served bot the name of its .env",
        "wsvoice.cli.phone": "hands the process's environment to config, and a served bot the name of its .env",
        "wsvoice.cli.hangup": "hands the process's environment to config",
        "wsvoice.cli.number": "hands the process's environment to config",
        "wsvoice.cli.deploy": "hands the process's environment to config",
        "wsvoice.cli.calls": "hands the process's environment to config",
        "wsvoice.cli.show": "looks whether there is a display, and hands the environment to config for a folder",
        "wsvoice.cli.completion": "hands the process's environment to config, for the folder of the running servers",
        "wsvoice.cli.help": "NO_COLOR, FORCE_COLOR and TERM, which rich looks at for everything else",
        "wsvoice.runner.workers.worker": "gives the bot the environment that the front has worked out for it",
        "wsvoice.dial.serving": "a bot that is served for calls gets this process's environment",
        "wsvoice.testing": "hands the process's environment to config",
        "wsvoice.scenarios.options": "hands the process's environment to config",
        "wsvoice.cli.call_tests": "hands the process's environment to config",
        "wsvoice.phone.tunnels": "ngrok's agent is given its token there, for its options are everybody's to read",
    },
    "printing": {
        "wsvoice.cli.output": "is where everything is printed",
        "wsvoice.cli.main": "--version and the help of the whole, which have to be there before rich is",
        "wsvoice.cli.number": "the help of its group, as --help prints it",
        "wsvoice.cli.deploy": "the help of its group, as --help prints it",
        "wsvoice.cli.terminal": "flushes what was printed, before and after it takes the terminal from it",
        "wsvoice.runner.logs": "the log's destination is stderr",
        "wsvoice.runner.watchdog": "flushes what was printed, before it ends the process",
    },
    "exiting": {
        "wsvoice.cli.main": "maps errors to the process's exit code",
        "wsvoice.runner.watchdog": "ends a process that a bot does not let end",
        "wsvoice.__main__": "ends a process that is interrupted before it has begun",
        "wsvoice.runner.workers.template": "is a program of its own, and tells how its workers ended",
    },
}

_ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})
_STREAMS = frozenset({"stdout", "stderr", "__stdout__", "__stderr__"})
_PRINTS = frozenset(
    {"print", "rich.print", "rich.console.Console", "typer.echo", "typer.secho", "click.echo", "click.secho"}
)
_EXITS = frozenset({"exit", "quit", "sys.exit", "os._exit", "os.abort"})


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is loaded at run time."""

    target: str
    line: int
    at_run_time: bool


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def is_inside(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


class Reader(ast.NodeVisitor):
    """Collects the imports of a module, and where it uses what is kept to few modules."""

    def __init__(self, module: str, *, is_package: bool, known: frozenset[str]) -> None:
        self.imports: list[Import] = []
        self.uses: list[tuple[str, int, str]] = []
        self._package = module if is_package else module.rpartition(".")[0]
        self._known = known
        self._names: dict[str, str] = {}
        self._at_run_time = True

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
            return
        before, self._at_run_time = self._at_run_time, False
        for each in node.body:
            self.visit(each)
        self._at_run_time = before
        for each in node.orelse:
            self.visit(each)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._note(alias.name, node.lineno)
            self._names[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = self._package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            # `from wsvoice import http` takes a module, `from wsvoice import Call` a name of the package.
            self._note(full if full in self._known else base, node.lineno)
            self._names[alias.asname or alias.name] = full
            self._use(full, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        called = self._full_name(node.func)
        if called in ("importlib.import_module", "__import__") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                self._note(argument.value, node.lineno)
        self._use(called, node.lineno)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._use(self._full_name(node), node.lineno)
        self.generic_visit(node)

    def _full_name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self._names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self._full_name(node.value)}.{node.attr}"
        return "?"

    def _note(self, target: str, line: int) -> None:
        self.imports.append(Import(target, line, self._at_run_time))

    def _use(self, name: str, line: int) -> None:
        """Sort a name that is called, looked up or imported into what is kept to few modules."""
        if not self._at_run_time:
            return
        owner, _, attribute = name.rpartition(".")
        kind = None
        if owner == "os" and attribute in _ENVIRONMENT:
            kind = "environment"
        elif name in _PRINTS or (owner == "sys" and attribute in _STREAMS):
            kind = "printing"
        elif name in _EXITS:
            kind = "exiting"
        if kind is not None and (kind, line, name) not in self.uses:
            self.uses.append((kind, line, name))


def problems(module: str, source: str, *, is_package: bool = False, known: frozenset[str] = frozenset()) -> list[str]:
    """Return what a module's source does that its layer may not, in words."""
    reader = Reader(module, is_package=is_package, known=known)
    reader.visit(ast.parse(source))
    found = [
        f"{module}:{each.line} imports {each.target}: {why}"
        for each in reader.imports
        if (why := objection(module, each)) is not None
    ]
    for kind, line, name in reader.uses:
        if module not in EXCEPTIONS[kind]:
            found.append(f"{module}:{line} uses {name}: {kind} is for {', '.join(EXCEPTIONS[kind])}")
    return found


def objection(module: str, imported: Import) -> str | None:
    """Return why a module may not import another, or ``None``."""
    layer, target = layer_of(module), imported.target
    if layer not in OURS:
        return f"{layer} has no place in the layers yet: add it to this test"
    top = target.partition(".")[0]
    if (layer in ("runner", "phone") or SERVERS.match(module)) and SIMULATORS.match(target):
        return "what answers calls never sees what simulates them"
    if (layer == "dial" or SIMULATORS.match(module)) and SERVERS.match(target):
        return "what simulates calls never sees what answers them"
    if top == "wsvoice":
        return None if layer_of(target) in OURS[layer] else f"{layer} may import {OURS[layer] or 'nothing'} of ours"
    if not imported.at_run_time:
        return None
    if top in PLACES and not is_inside(module, PLACES[top]):
        return f"{top} is met in {', '.join(PLACES[top]) or 'no module'} only"
    if top in sys.stdlib_module_names and top not in OUTSIDE.get(layer, ()):
        if layer in PURE_LAYERS and target not in PURE:
            return f"{layer} is pure, and {target} is not on the list of pure modules"
        return None
    if layer in OUTSIDE and top not in OUTSIDE[layer]:
        return f"{layer} may import {', '.join(OUTSIDE[layer]) or 'nothing'} beside the standard library"
    return None


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("wsvoice", *path.relative_to(PACKAGE).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())
KNOWN = frozenset(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_to_its_layer(module: str) -> None:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    assert problems(module, source, is_package=path.name == "__init__.py", known=KNOWN) == []


@pytest.mark.parametrize("module", [module for module in MODULES if layer_of(module) in PURE_LAYERS])
def test_a_pure_module_asks_no_calendar_what_day_it_is(module: str) -> None:
    assert re.findall(r"\.(?:now|today|utcnow)\(", MODULES[module].read_text(encoding="utf-8")) == []


def test_all_layers_are_looked_at() -> None:
    layers = {layer_of(module) for module in MODULES}
    assert {"errors", "call", "audio", "providers", "config", "http", "runner", "dial", "cli"} <= layers
    assert len(MODULES) > 30


def test_an_exception_is_withdrawn_once_nobody_needs_it() -> None:
    unused = {(kind, module) for kind, allowed in EXCEPTIONS.items() for module in allowed}
    for module, path in MODULES.items():
        reader = Reader(module, is_package=path.name == "__init__.py", known=KNOWN)
        reader.visit(ast.parse(path.read_text(encoding="utf-8")))
        unused -= {(kind, module) for kind, _, _ in reader.uses}
    assert unused == set()


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("wsvoice.errors", "import numpy", "beside the standard library"),
        ("wsvoice.errors", "import socket", "errors is pure"),
        ("wsvoice.call", "from wsvoice.errors import WsvoiceError", "call may import nothing of ours"),
        ("wsvoice.audio", "from wsvoice.call import Call", "audio may import"),
        ("wsvoice.audio", "import scipy.signal", "beside the standard library"),
        ("wsvoice.providers.acme", "import asyncio", "not on the list of pure modules"),
        ("wsvoice.providers.acme", "from time import time", "not on the list of pure modules"),
        ("wsvoice.providers.acme", "import urllib.request", "not on the list of pure modules"),
        ("wsvoice.providers.acme", "from loguru import logger", "loguru is met in"),
        ("wsvoice.providers.acme", "import pydantic", "beside the standard library"),
        ("wsvoice.providers.acme", "from wsvoice.config import RunConfig", "providers may import"),
        ("wsvoice.providers.acme", "from .. import http", "providers may import"),
        ("wsvoice.providers.acme", "def f():\n    import os", "not on the list of pure modules"),
        ("wsvoice.runner.acme", "import wsvoice.providers.twilio.simulator", "never sees what simulates"),
        ("wsvoice.providers.acme.server", "from wsvoice.providers.xml_answer import X", "never sees what simulates"),
        ("wsvoice.dial.acme", "from wsvoice.providers.twilio.server import X", "never sees what answers"),
        ("wsvoice.providers.acme.simulator", "import wsvoice.providers.acme.server", "never sees what answers"),
        ("wsvoice.config", "import yaml", "beside the standard library"),
        ("wsvoice.http", "from wsvoice.config import RunConfig", "http may import"),
        ("wsvoice.runner.routes", "from wsvoice.dial.caller import dial", "runner may import"),
        ("wsvoice.runner.routes", "from wsvoice import dial", "runner may import"),
        ("wsvoice.runner.routes", "def f():\n    from wsvoice.cli.output import Output", "runner may import"),
        ("wsvoice.runner.routes", "from wsvoice import create_app", "runner may import"),
        (
            "wsvoice.runner.routes",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wsvoice.cli",
            "runner",
        ),
        ("wsvoice.runner.session", "async def f():\n    import pipecat.frames.frames", "pipecat is met in"),
        ("wsvoice.runner.routes", "import httpx", "httpx is met in wsvoice.http only"),
        ("wsvoice.runner.routes", "import typer", "typer is met in"),
        ("wsvoice.dial.caller", "from wsvoice.runner.routes import create_app", "dial may import"),
        ("wsvoice.dial.caller", "from ..runner import routes", "dial may import"),
        (
            "wsvoice.dial.caller",
            "import importlib\nimportlib.import_module('wsvoice.runner.logs')",
            "dial may import",
        ),
        ("wsvoice.dial.caller", "from pipecat.frames.frames import Frame", "pipecat is met in"),
        ("wsvoice.dial.report", "import os\nx = os.environ['HOME']", "environment is for"),
        ("wsvoice.dial.report", "import os as system\nx = system.getenv('HOME')", "environment is for"),
        ("wsvoice.dial.report", "from os import environ", "environment is for"),
        ("wsvoice.config", "import os\nx = os.environ", "environment is for"),
        ("wsvoice.runner.routes", "from dotenv import load_dotenv", "dotenv is met in"),
        ("wsvoice.runner.routes", "import tomllib", "tomllib is met in"),
        ("wsvoice.runner.routes", "print('hello')", "printing is for"),
        ("wsvoice.runner.routes", "import sys\nsys.stderr.write('hello')", "printing is for"),
        ("wsvoice.cli.run", "import typer\ntyper.echo('hello')", "printing is for"),
        ("wsvoice.cli.run", "from typer import secho as say\nsay('hello')", "printing is for"),
        (
            "wsvoice.cli.run",
            "from rich.console import Console\nConsole()",
            "rich is met in wsvoice.cli.output",
        ),
        ("wsvoice.bot_loading", "import sys\nsys.exit(1)", "exiting is for"),
        ("wsvoice.gui.window", "import json", "has no place in the layers yet"),
    ],
)
def test_a_module_that_breaks_a_rule_is_named(module: str, source: str, complaint: str) -> None:
    found = problems(module, f"'''A module.'''\n{source}\n", known=KNOWN)
    assert found
    assert any(complaint in each for each in found), found
    assert all(each.startswith(f"{module}:") for each in found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "wsvoice.providers.acme",
            "import json, hmac\nfrom wsvoice.providers.base import Side\nimport cryptography.x509",
        ),
        ("wsvoice.audio", "import numpy as np\nimport wave\nimport audioop\nfrom wsvoice.errors import AudioFileError"),
        ("wsvoice.runner.pipecat.call_transport", "import pipecat.frames.frames"),
        ("wsvoice.runner.pipecat.patches.vad", "import pipecat"),
        ("wsvoice.runner.routes", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import httpx"),
        ("wsvoice.dial.caller", "from wsvoice import http\nimport websockets"),
        ("wsvoice.cli.run", "def run():\n    from wsvoice.runner.server import serve"),
    ],
)
def test_what_is_allowed_is_not_named(module: str, source: str) -> None:
    assert problems(module, source, known=KNOWN) == []


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    heavy = ["pipecat", "fastapi", "starlette", "uvicorn", "httpx", "numpy", "websockets", "loguru", "rich.console"]
    program = (
        "import sys\n"
        "import wsvoice, wsvoice.cli.main\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
        "wsvoice.create_app\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    before, after = (ast.literal_eval(line) for line in result.stdout.splitlines())
    assert before == []
    # The names that are looked for are those by which the libraries would be found.
    assert {"fastapi", "starlette", "numpy", "loguru"} <= set(after)


def test_a_bot_is_started_before_what_its_call_needs_is_loaded() -> None:
    heavy = ["pipecat", "httpx", "numpy", "websockets", "soundfile", "rich.console"]
    program = (
        "import sys\n"
        "import wsvoice.cli.main, wsvoice.dial.caller\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
        "import wsvoice.dial.placed_call\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    before, after = (ast.literal_eval(line) for line in result.stdout.splitlines())
    assert before == []
    assert {"httpx", "numpy"} <= set(after)
