"""``wsvoice number``: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.cli.invoke import GOOD, invoke
from tests.phone.acme import CREDENTIALS, NUMBER, OLD_URL, AcmeAccount, Company
from tests.phone.conftest import company
from wsvoice.phone.claims import Claim
from wsvoice.phone.numbers import NumberFile, PointedNumber
from wsvoice.providers.account import PhoneNumber, ServerAddresses
from wsvoice.runner.server import Ready

__all__ = ["company"]


@pytest.fixture(autouse=True)
def own_account(clean_process, company: Company, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**CREDENTIALS, "WSVOICE_STATE_DIR": str(tmp_path / "state")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def left(company: Company, tmp_path: Path) -> NumberFile:
    """The file of a run that died."""
    number = PointedNumber(AcmeAccount(CREDENTIALS), NUMBER, tmp_path / "state")

    async def main() -> None:
        await number.claim()
        await number.point(ServerAddresses("https://dead.example/"))

    asyncio.run(main())
    number.release()
    return number.file


def test_no_secret_of_a_url_is_shown(company: Company) -> None:
    company.applications["app-0"] = "https://me:hush@old.example/voice?key=hush"
    for command in (["list"], ["show", NUMBER], ["list", "--json"], ["show", NUMBER, "--json"]):
        done = invoke("number", *command)
        assert "https://old.example/voice" in done.stdout + done.stderr
        assert "hush" not in done.stdout + done.stderr


class TestList:
    def test_each_number_is_a_line(self, company: Company) -> None:
        company.add("+15550000001", "", voice=False)
        company.add("+15550000002", "", trunk="TK1")
        done = invoke("number", "list", "-t", "twilio")
        assert done.stdout == ""
        assert done.stderr.splitlines() == [
            "Twilio: 3 numbers",
            f"  {NUMBER}  Support; rings at {OLD_URL}",
            "  +15550000001  Support; has no voice",
            "  +15550000002  Support; rings at nowhere; cannot be pointed: it belongs to the trunk TK1",
        ]

    def test_the_provider_is_the_one_whose_credentials_are_set(self) -> None:
        assert invoke("number", "list").stderr.startswith("Twilio: one number\n")

    def test_whose_numbers_cannot_be_listed_is_not_asked_for_credentials(self) -> None:
        said = invoke("number", "list", "-t", "bandwidth", code=1).stderr
        assert said.startswith("error: wsvoice does not know Bandwidth's numbers")
        assert "BANDWIDTH_CLIENT_SECRET" not in said

    def test_credentials_may_be_in_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TWILIO_AUTH_TOKEN")
        Path("other.env").write_text("TWILIO_AUTH_TOKEN=secret\n")
        done = invoke("number", "list", "-t", "twilio", code=2)
        assert done.stderr == (
            "error: Twilio's API needs TWILIO_AUTH_TOKEN\n"
            "hint:  set it in the environment or in .env: on the first page of Acme's console\n"
        )
        invoke("number", "list", "-t", "twilio", "--env-file", "other.env")

    def test_json(self) -> None:
        said = json.loads(invoke("number", "list", "--json").stdout)
        assert said == {
            "provider": "twilio",
            "numbers": [
                {
                    "number": NUMBER,
                    "name": "Support",
                    "points_at": OLD_URL,
                    "has_voice": True,
                    "obstacle": "",
                    "warnings": ["Acme is slow today"],
                    "settings": {"application": "app-0"},
                    "run": "",
                }
            ],
        }

    def test_a_run_that_has_a_number_is_named(self, left: NumberFile) -> None:
        died = "run: one that died; `wsvoice number restore +15551234567` puts it back"
        assert died in invoke("number", "list").stderr
        claim = Claim(left.lock, {"pid": 123, "folder": "/bots"})
        assert "run: process 123, started in /bots" in invoke("number", "list").stderr
        claim.release()


class TestShow:
    def test_it_says_where_the_number_rings(self) -> None:
        lines = invoke("number", "show", "+1 (555) 123-4567", "-t", "twilio").stderr.splitlines()
        assert [line.split() for line in lines] == [
            ["number", NUMBER],
            ["provider", "Twilio"],
            ["name", "Support"],
            ["rings", "at", OLD_URL],
            ["application", "app-0"],
            ["warning:", "Acme", "is", "slow", "today"],
        ]

    def test_it_says_why_the_number_cannot_be_pointed(self, company: Company) -> None:
        company.numbers[NUMBER] |= {"voice": False, "trunk": "TK1"}
        text = invoke("number", "show", NUMBER).stderr
        assert "warning: it takes no calls: it has no voice\n" in text
        assert "warning: `wsvoice run --number` cannot point it: it belongs to the trunk TK1\n" in text
        assert "note: take it off the trunk in Acme's console\n" in text

    def test_json(self) -> None:
        said = json.loads(invoke("number", "show", NUMBER, "--json").stdout)
        assert (said["provider"], said["number"], said["points_at"]) == ("twilio", NUMBER, OLD_URL)

    def test_a_number_of_somebody_elses(self) -> None:
        done = invoke("number", "show", "+15550000000", code=1)
        assert done.stderr == f"error: the account has no +15550000000\nhint:  the account has {NUMBER}\n"

    def test_no_number(self) -> None:
        done = invoke("number", "show", code=2)
        assert done.stderr == (
            "error: NUMBER is missing\nhint:  name one, as in +15551234567; `wsvoice number list` lists them\n"
        )

    def test_a_number_that_is_none(self) -> None:
        done = invoke("number", "show", "555-1234", code=2)
        assert done.stderr.startswith("error: NUMBER takes a phone number with its country code, got '555-1234'\nhint:")


class TestRestore:
    def test_what_a_dead_run_left_is_put_back(self, company: Company, left: NumberFile) -> None:
        assert invoke("number", "restore").stderr == f"{NUMBER} rings at {OLD_URL} again\n"
        assert company.is_untouched
        assert invoke("number", "restore").stderr == "no number was left pointed at a run\n"
        assert invoke("number", "restore", NUMBER).stderr == f"{NUMBER} was not left pointed at a run\n"

    def test_json_says_what_became_of_each(self, company: Company, left: NumberFile) -> None:
        company.add("+15550000001")
        company.numbers[NUMBER]["application"] = company.numbers["+15550000001"]["application"]
        said = json.loads(invoke("number", "restore", "--json").stdout)
        assert said == {
            "numbers": [
                {
                    "provider": "twilio",
                    "number": NUMBER,
                    "result": "left",
                    "was": OLD_URL,
                    "file": str(left.path),
                    "error": None,
                }
            ]
        }
        assert json.loads(invoke("number", "restore", "--json").stdout) == {"numbers": []}

    def test_only_what_is_asked_for_is_put_back(self, company: Company, left: NumberFile) -> None:
        invoke("number", "restore", "+15550000001")
        invoke("number", "restore", "-t", "plivo")
        assert company.rings_at() == "https://dead.example/"
        invoke("number", "restore", NUMBER, "-t", "twilio")
        assert company.is_untouched

    def test_a_living_run_keeps_its_number(self, company: Company, left: NumberFile) -> None:
        claim = Claim(left.lock, {"pid": 123, "folder": "/bots"})
        rings = f"{NUMBER} rings at another run: process 123, started in /bots ({left.path})"
        done = invoke("number", "restore", NUMBER, code=1)
        assert done.stderr == f"error: {rings}\nhint:  stop it, which puts the number back; or use another number\n"
        done = invoke("number", "restore", "--json")
        assert done.stderr == f"{rings}\n"
        assert json.loads(done.stdout)["numbers"][0]["result"] == "in-use"
        claim.release()
        assert company.rings_at() == "https://dead.example/"

    def test_a_failure_of_one_does_not_keep_the_others_from_it(self, company: Company, left: NumberFile) -> None:
        broken = left.path.with_name("twilio-10000000.json")
        broken.write_text("{}")
        foreign = left.path.with_name("plivo-10000000.json")
        foreign.write_text(left.path.read_text())
        done = invoke("number", "restore", "--json", code=2)
        assert f"error: {broken} is damaged: KeyError\n" in done.stderr
        results = {each["file"]: each["result"] for each in json.loads(done.stdout)["numbers"]}
        assert results == {str(broken): "failed", str(foreign): "failed", str(left.path): "restored"}
        assert company.is_untouched

    def test_an_api_that_refuses_leaves_the_file(self, company: Company, left: NumberFile) -> None:
        company.before = lambda request: 403
        done = invoke("number", "restore", code=1)
        assert done.stderr.startswith("error: Twilio does not take the credentials (403)\n")
        assert left.path.exists()


class TestGroup:
    def test_alone_it_prints_its_help(self) -> None:
        done = invoke("number", code=2)
        assert done.stdout == ""
        assert [name for name in ("list", "show", "restore") if f"\n  {name} " in done.stderr] == [
            "list",
            "show",
            "restore",
        ]

    @pytest.mark.parametrize(
        ("arguments", "meant"),
        [
            (["number", "lst"], "did you mean `list`? `wsvoice number --help` lists what there is"),
            (["number", NUMBER], f"did you mean `wsvoice number show {NUMBER}`?"),
            (["numbers", "list"], "did you mean `wsvoice number list`?"),
            (["number", "show", "--jsn", NUMBER], "did you mean `--json`?"),
        ],
    )
    def test_what_is_misspelt_is_suggested(self, arguments: list[str], meant: str) -> None:
        assert meant in invoke(*arguments, code=2).stderr


class TestBanner:
    def test_run_says_what_rings_here(self, served, tmp_path: Path) -> None:
        (tmp_path / "bot.py").write_text(GOOD)
        found = PhoneNumber(NUMBER, points_at=OLD_URL)
        served.ready = Ready(
            "http://localhost:7860/", "https://b.example", ("twilio",), number=found, notes=("it is shared",)
        )
        done = invoke("run", "-t", "twilio", "-x", "b.example", "--number", "+1 555 123 4567", "--json")
        assert served.config.number == NUMBER
        assert f"  {NUMBER}  rings here; was: {OLD_URL}\n" in done.stderr
        assert "warning: it is shared\n" in done.stderr
        assert json.loads(done.stdout)["number"] == NUMBER

    def test_run_says_what_to_do_where_the_api_cannot(self, served, tmp_path: Path) -> None:
        (tmp_path / "bot.py").write_text(GOOD)
        served.ready = Ready("http://localhost:7860/", "https://b.example", ("exotel",), number_steps=("open it",))
        done = invoke("run", "-t", "exotel", "-x", "b.example", "--number", NUMBER)
        assert f"To have {NUMBER} ring here, set it up at Exotel by hand:\n  open it\n" in done.stderr

    def test_run_needs_to_know_whose_number_it_is(self, tmp_path: Path) -> None:
        done = invoke("run", "-x", "b.example", "--number", NUMBER, code=2)
        assert done.stderr == (
            "error: --number needs to know whose number it is\nhint:  add its provider: `-t twilio`\n"
        )
