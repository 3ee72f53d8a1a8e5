"""
Every contact of the runner with pipecat.

A pipecat that has not been tested is held against :mod:`wsvoice.pipecat_contracts` when this package is first loaded.
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


def _hold_against_contracts(version: str) -> None:
    global _missing
    try:
        # It is needed in any case, and what is inherited is found only in classes that are loaded.
        importlib.import_module("pipecat.transports.websocket.fastapi")
        lost = missing(RUNNER_FEATURES, version)
        _missing = frozenset(feature.name for feature in lost)
        importlib.import_module(f"{__name__}.call_arguments")
    except ImportError as error:
        raise unusable(version, str(error)) from error
    if lost:
        logger.warning(
            "pipecat {} is not one that this wsvoice was tested with, and some of what wsvoice relies on has changed. "
            "Calls go on without it: {}",
            version,
            "; ".join(f"{feature.name} ({feature.lost})" for feature in lost),
        )


if not is_tested(pipecat.__version__):
    _hold_against_contracts(pipecat.__version__)
