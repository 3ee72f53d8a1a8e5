"""A number is pointed at a server and back, whatever comes in between."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.phone.acme import CREDENTIALS, NUMBER, OLD_URL, AcmeAccount, Company
from wsvoice.errors import ApiError, ConfigError, NumberError, WsvoiceError
from wsvoice.phone.claims import Claim, ClaimedError, holder_of
from wsvoice.phone.numbers import (
    NumberFile,
    PointedNumber,
    PointedRecord,
    account_for_numbers,
    describe_restored,
    number_files,
    restore_left,
)
from wsvoice.providers.account import Account, ServerAddresses
from wsvoice.providers.asterisk.account import AsteriskAccount

HERE = ServerAddresses("https://here.example/")
MOVED = ServerAddresses("https://moved.example/")


def pointed(state: Path, number: str = NUMBER, credentials: dict[str, str] = CREDENTIALS) -> PointedNumber:
    return PointedNumber(AcmeAccount(credentials), number, state)


def run_that_dies(state: Path) -> PointedNumber:
    """Point the number, and leave it as a process does that is killed."""
    number = pointed(state)
    asyncio.run(claimed_and_pointed(number))
    number.release()
    return number


async def claimed_and_pointed(number: PointedNumber) -> None:
    await number.claim()
    await number.point(HERE)


def files(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "numbers").glob("*")) if state.exists() else []


def refused(work: Any) -> WsvoiceError:
    with pytest.raises(WsvoiceError) as caught:
        asyncio.run(work)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


class TestPointing:
    def test_it_rings_here_and_then_as_before(self, company: Company, state: Path) -> None:
        async def main() -> None:
            number = pointed(state)
            found = await number.claim()
            assert (found.points_at, company.is_untouched) == (OLD_URL, True)
            await number.point(HERE)
            assert company.rings_at() == "https://here.example/"
            assert await number.put_back() == "restored"
            number.release()

        asyncio.run(main())
        assert company.is_untouched
        assert files(state) == []

    def test_what_it_was_is_on_disk_before_each_change(self, company: Company, state: Path) -> None:
        seen: dict[str, dict[str, str]] = {}

        def look(request: str) -> None:
            [path] = (state / "numbers").glob("*.json")
            seen[request] = json.loads(path.read_text())["saved"]

        company.on_change = look
        run_that_dies(state)
        assert seen == {
            "POST /applications": {"application": "app-0"},
            f"PUT /numbers/{NUMBER}": {"application": "app-0", "made": "made-1"},
        }

    def test_the_file_says_what_a_later_process_needs_and_no_secret(self, company: Company, state: Path) -> None:
        run_that_dies(state)
        [name] = files(state)
        path = state / "numbers" / name
        text = path.read_text()
        assert name == "twilio-15551234567.json"
        assert path.stat().st_mode & 0o777 == 0o600
        assert "secret" not in text
        said = json.loads(text)
        assert {
            key: said[key] for key in ("version", "provider", "account_id", "number", "addresses", "was", "pid")
        } == {
            "version": 1,
            "provider": "twilio",
            "account_id": "AC1",
            "number": NUMBER,
            "addresses": {"webhook": "https://here.example/", "status": ""},
            "was": OLD_URL,
            "pid": os.getpid(),
        }
        assert said["folder"] == str(Path.cwd())
        assert said["started"] <= said["pointed"]

    def test_a_second_run_is_refused_and_names_the_first(self, company: Company, state: Path) -> None:
        async def main() -> None:
            first = pointed(state)
            await first.claim()
            await first.point(HERE)
            with pytest.raises(NumberError) as caught:
                await pointed(state).claim()
            for named in (
                f"process {os.getpid()}",
                str(Path.cwd()),
                str(state / "numbers" / "twilio-15551234567.json"),
            ):
                assert named in caught.value.message
            assert company.rings_at() == "https://here.example/"
            await first.put_back()
            first.release()
            second = pointed(state)
            await second.claim()
            second.release()

        asyncio.run(main())

    def test_of_two_numbers_each_has_its_own_run(self, company: Company, state: Path) -> None:
        company.add("+15557654321")

        async def main() -> None:
            numbers = [pointed(state), pointed(state, "+15557654321")]
            for each in numbers:
                await each.claim()
            assert len(files(state)) == 2
            for each in numbers:
                each.release()

        asyncio.run(main())

    def test_what_was_changed_by_others_since_is_left_alone(self, company: Company, state: Path) -> None:
        async def main() -> None:
            number = pointed(state)
            await claimed_and_pointed(number)
            company.applications["theirs"] = "https://theirs.example/"
            company.numbers[NUMBER]["application"] = "theirs"
            assert await number.put_back() == "left"
            number.release()

        asyncio.run(main())
        assert company.rings_at() == "https://theirs.example/"
        # The only copy of what it was.
        assert files(state) == ["twilio-15551234567.left"]
        assert PointedRecord.read(state / "numbers" / files(state)[0]).saved["application"] == "app-0"
        assert list(number_files(state)) == []
        assert "made-1" not in company.applications

    def test_it_follows_the_server_to_another_address(self, company: Company, state: Path) -> None:
        async def main() -> None:
            number = pointed(state)
            await claimed_and_pointed(number)
            assert await number.move(MOVED)
            assert company.rings_at() == "https://moved.example/"
            record = NumberFile(state, "twilio", NUMBER).read()
            assert record is not None
            assert (record.addresses, record.was) == (MOVED, OLD_URL)
            await number.put_back()
            number.release()

        asyncio.run(main())
        assert company.is_untouched

    def test_it_does_not_follow_if_it_was_pointed_elsewhere(self, company: Company, state: Path) -> None:
        async def main() -> None:
            number = pointed(state)
            await claimed_and_pointed(number)
            company.applications["theirs"] = "https://theirs.example/"
            company.numbers[NUMBER]["application"] = "theirs"
            assert not await number.move(MOVED)
            assert await number.put_back() is None
            number.release()

        asyncio.run(main())
        assert company.rings_at() == "https://theirs.example/"
        assert files(state) == ["twilio-15551234567.left"]

    def test_a_password_in_a_url_is_put_back_and_not_shown(self, company: Company, state: Path) -> None:
        company.applications["app-0"] = "https://me:hush@old.example/voice?key=hush"
        number = run_that_dies(state)
        assert "hush" not in number.file.path.read_text()
        done = asyncio.run(restore_left(number.file, number.account))
        assert done is not None
        said = describe_restored(number.file, company.rings_at(), done[1])
        assert said == f"{NUMBER} rings at {OLD_URL} again"
        assert company.rings_at() == "https://me:hush@old.example/voice?key=hush"


class TestFailures:
    """Each is one line with a hint, changes nothing and leaves no file."""

    def check(self, company: Company, state: Path, work: Any) -> WsvoiceError:
        error = refused(work)
        assert company.is_untouched
        assert files(state) == []
        return error

    def test_no_credentials(self, company: Company, state: Path) -> None:
        error = self.check(company, state, pointed(state, credentials={"TWILIO_ACCOUNT_SID": "AC1"}).claim())
        assert error.exit_code == 2
        assert error.message == "Twilio's API needs TWILIO_AUTH_TOKEN"
        assert company.requests == []

    def test_wrong_credentials(self, company: Company, state: Path) -> None:
        wrong = {**CREDENTIALS, "TWILIO_AUTH_TOKEN": "other"}
        with pytest.raises(ApiError, match="does not take the credentials") as caught:
            asyncio.run(pointed(state, credentials=wrong).claim())
        assert (caught.value.kind, files(state)) == ("credentials", [])

    def test_a_number_of_somebody_elses_is_answered_with_our_own(self, company: Company, state: Path) -> None:
        company.add("+15559999999")
        for last in range(10, 16):
            company.add(f"+155512345{last}")
        error = refused(pointed(state, "+15551234566").claim())
        assert error.message == "the account has no +15551234566"
        assert error.hint is not None
        assert error.hint.startswith("the account has +1555123456")
        assert error.hint.endswith(", and 3 more")
        assert "+15559999999" not in error.hint
        company.numbers.clear()
        assert refused(pointed(state).claim()).hint == "the account has no number; Twilio sells them"

    def test_a_number_without_voice(self, company: Company, state: Path) -> None:
        company.numbers[NUMBER]["voice"] = False
        error = self.check(company, state, pointed(state).claim())
        assert error.message == f"{NUMBER} takes no calls: it has no voice"

    def test_a_trunk(self, company: Company, state: Path) -> None:
        company.numbers[NUMBER]["trunk"] = "TK1"
        error = self.check(company, state, pointed(state).claim())
        assert error.message == f"{NUMBER} cannot be pointed: it belongs to the trunk TK1"
        assert error.hint == "take it off the trunk in Acme's console"

    def test_an_api_that_cannot_be_reached(
        self, company: Company, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ACME_API", "http://127.0.0.1:9")
        error = self.check(company, state, pointed(state).claim())
        assert error.message.startswith("the API at 127.0.0.1:9 cannot be reached")

    def test_an_api_that_asks_for_patience(self, company: Company, state: Path) -> None:
        answers = [429, 429]
        company.before = lambda request: answers.pop() if answers else None
        number = pointed(state)
        asyncio.run(number.claim())
        number.release()
        assert answers == []
        answers += [429] * 100
        error = self.check(company, state, pointed(state).claim())
        assert "429" in error.message

    def test_a_refusal_half_way_takes_back_the_first_half(self, company: Company, state: Path) -> None:
        company.before = lambda request: 403 if request.startswith("PUT") else None

        async def main() -> None:
            number = pointed(state)
            await number.claim()
            try:
                await number.point(HERE)
            finally:
                number.release()

        with pytest.raises(ApiError):
            asyncio.run(main())
        assert company.requests[-1].startswith("DELETE")
        assert company.is_untouched
        assert files(state) == []

    def test_what_cannot_even_be_taken_back_is_said_and_kept(self, company: Company, state: Path) -> None:
        number = pointed(state)
        asyncio.run(number.claim())
        made = "POST /applications"
        company.before = lambda request: 403 if made in company.requests[:-1] else None
        error = refused(number.point(HERE))
        assert "may not be as it was" in error.message
        assert str(number.file.path) in str(error.hint)
        number.release()
        assert files(state) == ["twilio-15551234567.json"]
        company.before = lambda request: None
        assert asyncio.run(restore_left(number.file, number.account)) is not None
        assert company.is_untouched
        assert files(state) == []

    def test_settings_that_cannot_be_kept(self, company: Company, state: Path) -> None:
        state.write_text("a file where the folder should be")
        error = refused(pointed(state).claim())
        assert "WSVOICE_STATE_DIR" in str(error.hint)
        assert company.requests == []

    def test_settings_that_can_no_longer_be_kept(self, company: Company, state: Path) -> None:
        number = pointed(state)
        asyncio.run(number.claim())
        number.file.path.mkdir()
        error = refused(number.point(HERE))
        number.release()
        assert "WSVOICE_STATE_DIR" in str(error.hint)
        assert company.is_untouched


class TestRunsThatDied:
    def test_the_next_run_puts_the_number_back_first(self, company: Company, state: Path) -> None:
        run_that_dies(state)

        async def main() -> None:
            number = pointed(state)
            found = await number.claim()
            assert number.left is not None
            assert number.left[1] == "restored"
            assert found.points_at == OLD_URL
            await number.point(MOVED)
            await number.put_back()
            number.release()

        asyncio.run(main())
        assert company.is_untouched
        assert files(state) == []

    def test_the_next_run_is_refused_if_that_fails(self, company: Company, state: Path) -> None:
        run_that_dies(state)
        company.before = lambda request: 403 if request.startswith("PUT") else None
        error = refused(pointed(state).claim())
        assert error.message.startswith(f"{NUMBER} was left pointed by a run that died, and cannot be put back: ")
        assert files(state) == ["twilio-15551234567.json"]

    @pytest.mark.parametrize("dies_before", ["POST", "PUT"])
    def test_one_that_died_between_saving_and_changing(self, company: Company, state: Path, dies_before: str) -> None:
        class KilledError(BaseException):
            pass

        number = pointed(state)

        def save_and_die(saved: Any, save: Callable[[Any], None]) -> None:
            save(saved)
            if dies_before == "POST" or "made" in saved:
                raise KilledError

        class Dying(AcmeAccount):
            def point(self, found: Any, addresses: Any, save: Any) -> Any:
                return super().point(found, addresses, lambda saved: save_and_die(saved, save))

        number.account = Dying(CREDENTIALS)
        with pytest.raises(KilledError):
            asyncio.run(claimed_and_pointed(number))
        number.release()
        assert len(files(state)) == 1
        done = asyncio.run(restore_left(number.file, pointed(state).account))
        assert done is not None
        assert done[1] == "unchanged"
        assert company.is_untouched
        assert files(state) == []

    def test_what_another_account_left_is_not_touched(self, company: Company, state: Path) -> None:
        file = run_that_dies(state).file
        record = PointedRecord.read(file.path)
        file.path.write_text(record.to_json().replace('"AC1"', '"AC2"'))
        error = refused(pointed(state).claim())
        assert "with the account AC2, and the credentials are of AC1" in error.message
        assert company.rings_at() == "https://here.example/"
        assert files(state) == ["twilio-15551234567.json"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is damaged"),
            ("[]", "is damaged"),
            ('{"version": 1}', "is damaged"),
            ('{"version": 1, "addresses": {}, "saved": 1}', "is damaged"),
            ('{"version": 2}', "is of another version of wsvoice"),
        ],
    )
    def test_a_file_that_is_none_of_ours_is_left_alone(
        self, company: Company, state: Path, content: str, message: str
    ) -> None:
        path = run_that_dies(state).file.path
        path.write_text(content)
        error = refused(pointed(state).claim())
        assert message in error.message
        assert str(path) in error.message
        assert path.read_text() == content


class TestClaims:
    def test_the_claim_of_a_killed_process_is_free(self, tmp_path: Path) -> None:
        """Even if a process that it forked lives on, as a worker of a bot's may."""
        path = tmp_path / "claim"
        script = f"""
            import os, signal, sys, time
            from pathlib import Path
            from wsvoice.phone.claims import Claim
            claim = Claim(Path({str(path)!r}), {{"pid": os.getpid()}})
            reader, writer = os.pipe()
            if os.fork() == 0:
                claim.release()
                os.write(writer, b"x")
                time.sleep(30)
            os.read(reader, 1)
            print("claimed", flush=True)
            time.sleep(30)
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
            assert holder_of(path) == {"pid": process.pid}
            with pytest.raises(ClaimedError):
                Claim(path, {})
            process.kill()
            process.wait(10)
            assert holder_of(path) is None
            Claim(path, {}).release()
            assert not path.exists()
        finally:
            os.killpg(process.pid, 9)
            process.communicate()

    def test_a_released_claim_stays_released(self, tmp_path: Path) -> None:
        path = tmp_path / "claim"
        first = Claim(path, {"n": 1})
        first.release()
        second = Claim(path, {"n": 2})
        first.release()
        assert holder_of(path) == {"n": 2}
        second.release()
        assert holder_of(path) is None


class TestWhoseAccount:
    def test_it_is_the_one_that_is_named(self, company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
        assert account_for_numbers("twilio", {}).name == "twilio"
        # One that has neither an API for numbers, nor a way by hand.
        monkeypatch.setattr(AsteriskAccount, "how_to_point", Account.how_to_point)
        with pytest.raises(ConfigError, match="wsvoice cannot point numbers of Asterisk's"):
            account_for_numbers("asterisk", {})

    def test_or_the_only_one_with_credentials(self, company: Company) -> None:
        assert account_for_numbers(None, CREDENTIALS).name == "twilio"
        with pytest.raises(ConfigError, match="whose numbers are meant: no credentials are set"):
            account_for_numbers(None, {})
