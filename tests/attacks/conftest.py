"""The fixtures of the server's own tests."""

from tests.runner.conftest import module_server, serve, shared

__all__ = ["module_server", "serve", "shared"]
