"""What servers sign for each other, and the secret that they do it with."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.process import server_process
from wsvoice.call import Call
from wsvoice.config import STREAM_SECRET, RunConfig, resolve_run
from wsvoice.errors import ConfigError, TokenError
from wsvoice.runner.auth import StreamTokens
from wsvoice.runner.fleet import join_fleet
from wsvoice.runner.seals import Seals, shared_secrets

OLD, NEW = "0123456789abcdef" * 4, "fedcba9876543210" * 4
CALL = Call("telnyx", "v3:1", account_id="A1", from_number="+15550100001", to_number="+15550100002", control="api")


def secrets_of(written: str) -> tuple[bytes, ...]:
    return shared_secrets(RunConfig(credentials={STREAM_SECRET: written} if written else {}))


def test_without_a_secret_nobody_shares_one() -> None:
    assert secrets_of("") == ()
    assert not Seals().is_shared


@pytest.mark.parametrize("written", ["short", "x" * 31, f"{NEW},short", f"{NEW},", f",{NEW}", "a" * 64, "abc" * 20])
def test_a_secret_that_could_be_guessed_is_refused(written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        secrets_of(written)
    assert "openssl rand -hex 32" in str(caught.value.hint)
    assert written not in caught.value.message
    assert NEW not in caught.value.message


def test_the_secret_can_be_changed_without_a_call_refused() -> None:
    """All servers learn to accept the new one, then sign with it, then forget the old one."""
    stages = [OLD, f"{OLD}, {NEW}", f"{NEW},{OLD}", NEW]
    for before, after in itertools.pairwise(stages):
        one, other = Seals(secrets_of(before)), Seals(secrets_of(after))
        assert other.open("stream", one.seal("stream", 1)) == 1
        assert one.open("stream", other.seal("stream", 1)) == 1
    assert Seals(secrets_of(NEW)).open("stream", Seals(secrets_of(OLD)).seal("stream", 1)) is None


def test_a_seal_is_good_for_one_purpose() -> None:
    seals = Seals([OLD.encode()])
    sealed = seals.seal("stream", {"a": "ä"})
    assert seals.open("stream", sealed) == {"a": "ä"}
    assert seals.open("dialled", sealed) is None
    assert seals.open("message", sealed) is None


@pytest.mark.parametrize("text", ["", ".", "a", "a.b", "\ud800", "x" * 10**6])
def test_what_nobody_sealed_is_not_opened(text: str) -> None:
    assert Seals([OLD.encode()]).open("stream", text) is None


def test_everything_about_a_call_travels_in_its_token() -> None:
    token = StreamTokens(Seals([OLD.encode()])).issue(CALL, verified=False, dialled="d")
    claims = StreamTokens(Seals([OLD.encode()])).redeem(token, "telnyx")
    assert (claims.call, claims.verified, claims.dialled) == (CALL, False, "d")


def test_a_token_of_another_version_is_refused() -> None:
    seals = Seals([OLD.encode()])
    with pytest.raises(TokenError, match="another version"):
        StreamTokens(seals).redeem(seals.seal("stream", ["telnyx", "v3:1"]), "telnyx")


def test_the_secret_is_shown_nowhere(tmp_path: Path) -> None:
    with server_process(tmp_path, "async def bot(runner_args):\n    pass\n", "-v", **{STREAM_SECRET: OLD}) as server:
        server.logged("takes calls")
    assert OLD not in server.log()


def test_a_redis_needs_a_secret() -> None:
    with pytest.raises(ConfigError, match=STREAM_SECRET):
        join_fleet(RunConfig(redis="redis://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("redis://user:hidden@cache.example:6379/0", "redis://cache.example:6379/0"),
        ("rediss://:hidden@cache.example", "rediss://cache.example"),
        ("unix:///run/redis.sock?password=hidden", "unix:///run/redis.sock"),
    ],
)
def test_the_password_of_redis_is_not_shown(tmp_path: Path, written: str, shown: str) -> None:
    resolved = resolve_run({}, environ={"WSVOICE_REDIS_URL": written}, cwd=tmp_path)
    assert resolved.config.redis == written
    assert resolved.values["redis-url"] == shown
    assert "hidden" not in repr(resolved.config)


@pytest.mark.parametrize("written", ["localhost:6379", "http://cache", "redis://", "unix://run/x", "redis://a b", "pw"])
def test_what_is_no_redis_is_refused_without_being_shown(tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run({"redis-url": written}, environ={}, cwd=tmp_path)
    assert "redis://localhost:6379/0" in str(caught.value.hint)
    assert written not in caught.value.message.replace("redis://, rediss:// or unix:// address", "")
