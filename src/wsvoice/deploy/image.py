"""The container image: a Dockerfile, and what of the project's folder stays out of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from wsvoice.deploy.command import PORT, RECORDINGS_FOLDER, STATE_FOLDER, USER_ID
from wsvoice.deploy.yaml_text import comment


@dataclass(frozen=True, slots=True)
class Project:
    """
    The folder that becomes an image.

    Attributes:
        bot: The bot as ``wsvoice run`` takes it.
        python: The version of Python, such as ``3.12``.
        requires: Where it says what it needs: ``pyproject.toml``, ``requirements.txt``, or ``""`` for nowhere.
        is_package: Whether the bot is a module of a package that has to be installed.
    """

    bot: str
    python: str = "3.12"
    requires: str = ""
    is_package: bool = False


#: Takes the place of the address in `wsvoice @ file:///…`, which leads nowhere in an image, where there is a wheel.
_LOCAL_WHEEL = r"""sed -i 's/^wsvoice @ .*/wsvoice/'"""
#: What a bot needs that says nothing of it.
_LEAST = "wsvoice"
_DEPENDENCIES = (
    "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'].get('dependencies', []), sep='\\n')"
)


def dockerfile(project: Project, *, path: str) -> str:
    """Return the Dockerfile that is at `path` in the project's folder."""
    head = (
        "Made by `wsvoice deploy`. In the project's folder:\n"
        f"  docker build -f {shlex.quote(path)} -t IMAGE .\n"
        f"{path}.dockerignore keeps .env and what is not needed out of it; podman wants --ignorefile for that."
    )
    parts = [
        f"FROM python:{project.python}-slim",
        f"RUN useradd --uid {USER_ID} --create-home bot \\\n"
        f" && install -d -o bot -g bot -m 700 {STATE_FOLDER} {RECORDINGS_FOLDER}\n"
        "WORKDIR /app",
        *_install(project),
        "# Its secrets would be everybody's who can read the image.\n"
        "RUN found=$(find . -name .env ! -type d); \\\n"
        '    [ -z "$found" ] || { echo "error: $found must not be in an image" >&2; exit 1; }',
        f"USER {USER_ID}\n"
        f"ENV WSVOICE_STATE_DIR={STATE_FOLDER}\n"
        f"EXPOSE {PORT}\n"
        "# Without a shell in between, which would keep SIGTERM from it.\n"
        f"CMD {json.dumps(['wsvoice', 'run', '--host=0.0.0.0', project.bot], ensure_ascii=False)}",
    ]
    return comment(head) + "\n\n".join(parts) + "\n"


def _install(project: Project) -> list[str]:
    """Return the steps that bring the bot and what it needs; wheels in the folder wheels/ go before the index."""
    if not project.requires:
        return [f"COPY . .\nRUN pip install --no-cache-dir $(ls wheels/*.whl 2>/dev/null) {_LEAST}"]
    write = f'python -c "{_DEPENDENCIES}" >requirements.txt && ' if project.requires == "pyproject.toml" else ""
    needs = (
        "# First what the bot needs, which changes less often than the bot.\n"
        f"COPY {project.requires} wheels/*.whl ./\n"
        f"RUN {write}wheels=$(ls *.whl 2>/dev/null || true); \\\n"
        f'    [ -z "$wheels" ] || {_LOCAL_WHEEL} requirements.txt; \\\n'
        "    pip install --no-cache-dir $wheels wsvoice -r requirements.txt"
    )
    copy = "COPY . ."
    if project.is_package:
        copy += "\nRUN pip install --no-cache-dir --no-deps ."
    return [needs, copy]


def dockerignore() -> str:
    """
    Return what of the project's folder stays out of the image.

    https://docs.docker.com/build/concepts/context/#dockerignore-files
    """
    ignored = [
        *(
            ".git",
            ".github",
            "**/.env",
            "**/.env.*",
            "!**/.env.example",
            "**/.venv",
            "**/venv",
            "**/__pycache__",
            "**/*.pyc",
        ),
        *("**/.*_cache", "**/node_modules", "recordings"),
    ]
    return comment("Secrets, and what would only make the image larger.") + "\n".join(ignored) + "\n"
