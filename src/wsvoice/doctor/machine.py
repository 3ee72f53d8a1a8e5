"""This machine: its Python, its limits."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wsvoice.doctor.checkup import Result, fail, ok, skipped, warn
from wsvoice.phone.tunnel_command import CLOUDFLARED

#: With fewer open files, a few dozen calls at once may fail: each has a socket, and bots open files and connections.
FEW_FILES = 1024
#: What a container may use of the processors, in microseconds of each period:
#: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def look_at_python(environ: Mapping[str, str]) -> list[Result]:
    """Look at the interpreter, and whether it is the one whose packages the user means."""
    version = platform.python_version()
    results = []
    if sys.version_info.releaselevel != "final":
        results.append(warn(f"Python {version} is a preview", "use a released Python"))
    active = environ.get("VIRTUAL_ENV", "")
    if active and Path(active).resolve() != Path(sys.prefix).resolve():
        results.append(
            warn(
                f"the virtual environment {active} is active, and wsvoice runs in {sys.prefix}: what is installed in"
                " the one is not seen in the other",
                f"install wsvoice there: `{active}/bin/python -m pip install wsvoice`",
            )
        )
    return results or [ok(f"Python {version} in {sys.prefix}")]


def look_at_limits() -> list[Result]:
    """Look at what this process may use: open files and processors."""
    files, processors = open_files(), processors_allowed()
    results = []
    if files is not None and files < FEW_FILES:
        results.append(
            warn(
                f"a process may have {files} open files here, which is few for calls at once",
                "raise the limit: `ulimit -n 4096`, LimitNOFILE= of systemd, or --ulimit nofile= of a container",
            )
        )
    if processors < 2:
        results.append(
            warn(
                f"wsvoice may use {processors:g} processor{'' if processors == 1 else 's'}: speech models and calls"
                " delay each other",
                "give it two or more; `wsvoice dial -n 10 --find-knee` says how many calls fit",
            )
        )
    shown = "any number of" if files is None else files
    return results or [ok(f"{processors:g} processors, {shown} open files")]


def open_files() -> int | None:
    """Return how many files this process may open; ``None`` for any number."""
    # There is no such limit on Windows.
    with suppress(ImportError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return None if soft == resource.RLIM_INFINITY else soft
    return None


def processors_allowed(quota: Path = _QUOTA) -> float:
    """Return how many processors this process may use, which a container may limit to a part of one."""
    count: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        most, period = quota.read_text().split()
        if most != "max":
            count = min(count, int(most) / int(period))
    return count


def look_at_tunnel_program(tunnel: str | None, has_token: bool, agent: Path | None) -> list[Result]:
    """
    Look at what a tunnel needs before it can be opened.

    Args:
        tunnel: As ``--tunnel`` has it.
        has_token: Whether ngrok's token is known.
        agent: The program that would be started; ``None`` if it is not on this machine.
    """
    if tunnel is None:
        return [skipped("no tunnel is asked for")]
    results = []
    if tunnel == "ngrok" and not has_token:
        results.append(
            fail(
                "ngrok's token is neither in NGROK_AUTHTOKEN nor in its agent's configuration",
                "set NGROK_AUTHTOKEN to the one of https://dashboard.ngrok.com/get-started/your-authtoken",
            )
        )
    if agent is None and tunnel == "ngrok":
        results.append(
            warn(
                "ngrok's agent is not on this machine: it is downloaded when the tunnel is opened",
                "get it at https://ngrok.com/download if this machine may not download it",
            )
        )
    elif agent is None:
        program = shlex.split(tunnel)[0]
        mend = CLOUDFLARED.hint if tunnel == "cloudflared" else f"install {program}"
        results.append(fail(f"the program {program} is not on this machine", mend))
    return results or [ok(f"{agent} opens it")]
