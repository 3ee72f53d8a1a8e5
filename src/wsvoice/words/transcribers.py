"""Who turns what was said into words: a service by its URL, a model on this machine, or a function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from wsvoice.config import did_you_mean, without_secrets
from wsvoice.config.values import parse_http_url
from wsvoice.errors import UsageError
from wsvoice.words.services import MODEL, ServiceError, TranscribingService

#: Of packages that bring a transcriber along.
ENTRY_POINTS = "wsvoice.transcribers"
#: The transcriber that is a service of OpenAI's own.
OPENAI, OPENAI_URL = "openai", "https://api.openai.com/v1"
#: The transcriber that asks nobody.
OFFLINE = "offline"
#: How much is taken of what a transcriber returns for one piece of sound, in characters.
TEXT_LIMIT = 10_000

#: Returns the words in 16-bit little-endian samples, from their rate and the language as two letters.
Transcribe = Callable[[bytes, int, str], str]


def load_transcriber(name: str, model: str | None = None, key: str = "") -> Transcribe:
    """
    Return the transcriber of that name, which returns one line of text.

    Args:
        name: A URL, ``openai``, ``offline``, ``module:function``, or one that a package brings along.
        model: The model that it is to use; ``None`` for its own choice. Functions are not told.
        key: The key for a service.

    Raises:
        UsageError: If there is none, or it cannot be used.
    """
    if name == OPENAI and not key:
        raise UsageError("the transcriber openai needs a key", hint="set OPENAI_API_KEY")
    if name == OPENAI or name.startswith(("http://", "https://")):
        url = OPENAI_URL if name == OPENAI else parse_http_url(name, "the transcriber")
        return _in_one_line(TranscribingService(url, model or MODEL, key), name)
    if name == OFFLINE:
        from wsvoice.words.offline import load_model

        return _in_one_line(load_model(model), name)
    found = _find(name)
    if not callable(found):
        raise UsageError(f"the transcriber {name} is no function", hint="it takes samples, their rate and a language")
    return _in_one_line(found, name)


def _find(name: str) -> Any:
    """Return what `name` stands for: what an installed package has, or the function of a module."""
    installed = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    module, _, function = name.partition(":")
    if name not in installed and not _is_function(module, function):
        listed = f"; installed are {', '.join(sorted(installed))}" if installed else ""
        hint = did_you_mean(name, [*installed, OPENAI, OFFLINE])
        raise UsageError(
            f"there is no transcriber {name!r}{listed}",
            hint=hint or "install the package that brings it, or give `module:function` or a URL",
        )
    try:
        if name in installed:
            return installed[name].load()
        if (here := str(Path.cwd())) not in sys.path:
            # After all others, so that no file here takes the place of a library.
            sys.path.append(here)
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the transcriber {name} is not installed: {_line(str(error))}",
            hint="install what it needs, or name another",
        ) from None
    # A module may raise anything while it is imported, and try to end the process.
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"the transcriber {name} cannot be imported: {_why(error)}", hint="mend its module, or name another"
        ) from error


def _is_function(module: str, function: str) -> bool:
    """Whether a module can have this name, and a function in it the other."""
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _in_one_line(transcribe: Transcribe, name: str) -> Transcribe:
    def call(pcm: bytes, sample_rate: int, language: str) -> str:
        try:
            text = str(transcribe(pcm, sample_rate, language))
        except ServiceError:
            raise
        # Somebody else's code may raise anything, try to end the process, or be cancelled.
        except BaseException as error:
            raise ServiceError(f"the transcriber {without_secrets(name)} failed: {_why(error)}") from error
        # What is half of a character cannot be written anywhere.
        whole = text[:TEXT_LIMIT].encode("utf-8", "replace").decode("utf-8")
        return " ".join(whole.split())

    return call


def _why(error: BaseException) -> str:
    return _line(f"{type(error).__name__}: {error}")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
