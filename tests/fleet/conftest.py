"""Servers that share a secret, and a Redis if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.redis_server import RedisServer, redis_server
from tests.runner.conftest import serve

__all__ = ["redis", "serve"]


@pytest.fixture(scope="module")
def module_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests of a module that leave it running."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(module_redis: RedisServer) -> RedisServer:
    """The module's Redis, with nothing in it."""
    import redis

    with redis.Redis.from_url(module_redis.url) as client:
        client.flushall()
    return module_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that a test may stop."""
    with redis_server(tmp_path) as server:
        yield server
