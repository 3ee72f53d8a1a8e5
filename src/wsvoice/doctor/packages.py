"""The installed packages: whether they are what wsvoice and pipecat ask for, and whether wsvoice knows this pipecat."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from wsvoice.doctor.checkup import Result, fail, ok, warn
from wsvoice.errors import ConfigError
from wsvoice.pipecat_contracts import RUNNER_FEATURES, TESTED, is_tested, missing

#: Packages that are often installed in the place of another one of nearly the same name, and what is meant.
MISTAKEN = {
    "pipecat": ("pipecat-ai", "pipecat"),
    "dotenv": ("python-dotenv", "dotenv"),
}


def look_at_packages(root: str = "wsvoice") -> list[Result]:
    """Look whether every package that `root` needs, and what these need, is installed in a version that they take."""
    results = [_mistaken(name, *meant) for name, meant in MISTAKEN.items() if _version(name)]
    seen: set[str] = set()
    broken: dict[str, list[str]] = {}
    for owner, needed in _requirements(root, frozenset(), seen):
        version = _version(needed.name)
        if version is None or not needed.specifier.contains(version, prereleases=True):
            state = "is not installed" if version is None else f"{version} is installed"
            broken.setdefault(f"{needed.name} {state}", []).append(f"{owner} needs {_shown(needed)}")
    for state, owners in broken.items():
        name = state.partition(" ")[0]
        wanted = ",".join(sorted({each.partition(name)[2] for each in owners} - {""}))
        results.append(
            fail(f"{state}, and {'; '.join(owners)}", f'python -m pip install "{name}{wanted}", in this environment')
        )
    return results or [ok(f"{len(seen)} packages have the versions that they ask of each other")]


def look_at_pipecat() -> list[Result]:
    """Look whether this is a pipecat that wsvoice was tested with, and if not, what of it has changed."""
    version = _version("pipecat-ai")
    if version is None:
        return [fail("pipecat-ai is not installed", f'python -m pip install "pipecat-ai[websocket]=={TESTED[-1]}.*"')]
    tested = ", ".join(f"{each}.x" for each in TESTED)
    if is_tested(version):
        return [ok(f"pipecat {version}, with which wsvoice was tested")]
    try:
        lost = missing(RUNNER_FEATURES, version)
    except ConfigError as error:
        return [fail(error.message, error.hint)]
    hint = f"tested is pipecat {tested}; a newer wsvoice may know {version}"
    if lost:
        return [warn(f"with pipecat {version} {each.lost}", hint) for each in lost]
    return [warn(f"wsvoice was not tested with pipecat {version}; what it relies on has not changed", hint)]


def _mistaken(name: str, meant: str, module: str) -> Result:
    return fail(
        f"the package {name} is installed, which is not the one that `import {module}` is meant to find",
        f"python -m pip uninstall {name}, then python -m pip install --force-reinstall {meant}",
    )


def _requirements(owner: str, extras: frozenset[str], seen: set[str]) -> Iterator[tuple[str, Requirement]]:
    """Yield what a package needs with these extras, and what those need, each with who needs it."""
    key = f"{canonicalize_name(owner)}[{','.join(sorted(extras))}]"
    if key in seen:
        return
    seen.add(key)
    try:
        written = metadata.requires(owner) or []
    except metadata.PackageNotFoundError:
        return
    for text in written:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if _applies(needed.marker, extras):
            yield owner, needed
            yield from _requirements(needed.name, frozenset(needed.extras), seen)


def _applies(marker: Marker | None, extras: frozenset[str]) -> bool:
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def _shown(needed: Requirement) -> str:
    return f"{needed.name}{needed.specifier}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
