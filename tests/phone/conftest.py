"""Servers for the tests of the telephone network: those of the runner's tests."""

from tests.runner.conftest import serve

__all__ = ["serve"]
