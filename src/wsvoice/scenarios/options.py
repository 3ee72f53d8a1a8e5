"""What pytest's options and the project's settings say of how calls are tested, and where their traces go."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wsvoice.config import TestConfig, make_private, resolve_test
from wsvoice.errors import UsageError

if TYPE_CHECKING:
    import pytest

#: How much of a test's name is in that of its trace, in bytes: few disks take more than 255 in all.
MAX_STEM = 120


def read_config(config: pytest.Config) -> TestConfig:
    """
    Return how scenarios are run, from pytest's options and the project's settings.

    Raises:
        ConfigError: If a setting cannot be used.
    """
    names = ("repeat", "save_baseline", "compare", "max_slower", "traces")
    flags = {name: config.getoption(f"calls_{name}") for name in names}
    for name in ("save_baseline", "compare", "traces"):
        if flags[name]:
            flags[name] = config.invocation_params.dir / flags[name]
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    return resolve_test(flags, environ=os.environ, cwd=config.rootpath).config


def make_folder(traces: Path | None) -> None:
    """
    Make the folder for traces, if there is to be one.

    Raises:
        UsageError: If it cannot be made.
    """
    try:
        if traces is not None:
            make_private(traces)
    except OSError as error:
        raise UsageError(
            f"no traces can be written to {traces}: {error.strerror}", hint="name another folder: --traces DIR"
        ) from None


def trace_file(traces: Path, name: str, number: int | None = None) -> Path:
    """
    Return the file of a call's trace in a folder.

    Args:
        traces: The folder.
        name: The test, with its folder, because another folder may have a test of the same name.
        number: Which of the test's calls it is; ``None`` for the only one.
    """
    stem = re.sub(r"\W+", "-", name).strip("-").encode()[:MAX_STEM].decode(errors="ignore")
    if re.fullmatch(r"\w+", name) is None or stem != name:
        # Tests of different names have different traces: `test[+1]` and `test[-1]`.
        stem += f"-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return traces / f"{stem}{f'-{number}' if number is not None else ''}.call"
