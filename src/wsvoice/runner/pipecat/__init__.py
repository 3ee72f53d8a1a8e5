"""
All of the runner's contact with pipecat.

An untested pipecat is checked against :mod:`wsvoice.pipecat_contracts` when this package is first loaded.
"""

from __future__ import annotations

import importlib

import pipecat
from loguru import logger

from wsvoice.pipecat_contracts import RUNNER_FEATURES, is_tested, missing, unusable

_missing: frozenset[str] = frozenset()


def is_supported(feature: str) -> bool:
    """Whether the installed pipecat has all that a feature of :data:`RUNNER_FEATURES` relies on."""
    return feature not in _missing


def _check_contracts(version: str) -> None:
    global _missing
    try:
        # It is needed anyway, and inherited methods are found only in loaded classes.
        importlib.import_module("pipecat.transports.websocket.fastapi")
        lost = missing(RUNNER_FEATURES, version)
        _missing = frozenset(feature.name for feature in lost)
        importlib.import_module(f"{__name__}.call_arguments")
    except ImportError as error:
        raise unusable(version, str(error)) from error
    if lost:
        logger.warning(
            "this wsvoice was not tested with pipecat {}, and some of what it relies on has changed. "
            "Calls work without it: {}",
            version,
            "; ".join(f"{feature.name} ({feature.lost})" for feature in lost),
        )


if not is_tested(pipecat.__version__):
    _check_contracts(pipecat.__version__)
