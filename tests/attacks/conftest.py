"""The fixtures of the server's own tests."""

from tests.runner.conftest import serve

__all__ = ["serve"]
