"""
Points a phone number at a server for as long as it runs, and back.

What the number's settings were is on disk before the first change, so that a later process can put them back: the
next run of the same number, or ``wsvoice number restore``. Nothing that is written holds a credential of the account's;
a webhook's URL, which is put back as it was, may hold one of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsvoice.config import make_private, nearest, without_secrets, write_private
from wsvoice.errors import ApiError, ConfigError, NumberError
from wsvoice.phone.accounts import find_account
from wsvoice.phone.claims import Claim, ClaimedError, holder_of
from wsvoice.phone.client import carry_out
from wsvoice.providers import PROVIDERS, load_company
from wsvoice.providers.account import Account, PhoneNumber, Restored, Saved, ServerAddresses

#: The form of the files; a file of another one is left alone.
VERSION = 1
#: How many of the account's own numbers are named where another one was asked for.
SHOWN_NUMBERS = 5

_RESTORE = "`wsvoice number restore`"


@dataclass(frozen=True, slots=True)
class PointedRecord:
    """
    What is written of a number that was pointed at a server.

    Attributes:
        provider: As in ``wsvoice run -t NAME``.
        account_id: The account that has the number; empty where the API does not say.
        number: In E.164.
        saved: What :meth:`~wsvoice.providers.account.Account.restore` needs.
        addresses: Where it points now.
        was: Where its calls went before, for people, and so without secrets.
        shares: What was changed with it that other numbers share; as of the :class:`PhoneNumber`.
        pid, started, folder: The process that pointed it, when that began, and where it was started.
        pointed: When the number was changed.
    """

    provider: str
    account_id: str
    number: str
    saved: Saved
    addresses: ServerAddresses
    was: str = ""
    pid: int = 0
    started: str = ""
    folder: str = ""
    pointed: str = ""
    shares: str = ""

    def to_json(self) -> str:
        """Return the content of its file."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> PointedRecord:
        """
        Return what a file says.

        Raises:
            NumberError: If it cannot be read, or is none of ours.
        """
        try:
            said: Any = json.loads(path.read_text("utf-8"))
            if said.pop("version") != VERSION:
                raise NumberError(f"{path} is of another version of wsvoice", hint="restore it with that version")
            addresses = ServerAddresses(**said.pop("addresses"))
            saved = {str(name): str(value) for name, value in said.pop("saved").items()}
            return cls(**said, saved=saved, addresses=addresses)
        except OSError as error:
            raise NumberError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            hint = "look up the number's settings at the provider, then remove the file"
            raise NumberError(f"{path} is damaged: {type(error).__name__}", hint=hint) from error


class NumberFile:
    """
    The file of one number, and the claim of the run that points it.

    Args:
        state: The folder for state.
    """

    def __init__(self, state: Path, provider: str, number: str) -> None:
        self.provider = provider
        self.digits = number.lstrip("+")
        self.path = state / "numbers" / f"{provider}-{self.digits}.json"
        self.lock = self.path.with_suffix(".lock")
        #: What it said, once the number was left alone.
        self.kept = self.path.with_suffix(".left")

    @classmethod
    def at(cls, path: Path) -> NumberFile:
        """Return the one at `path`."""
        provider, _, digits = path.stem.rpartition("-")
        return cls(path.parents[1], provider, digits)

    def holder(self) -> Mapping[str, object] | None:
        """Return what the living run says of itself that points the number; ``None`` if there is none."""
        return holder_of(self.lock)

    def read(self) -> PointedRecord | None:
        """Return what it says; ``None`` if there is none. A :exc:`NumberError` is raised if it is unusable."""
        return PointedRecord.read(self.path) if self.path.exists() else None

    def claim(self, number: str, started: str) -> Claim:
        """
        Claim the number for this process.

        Raises:
            NumberError: If a living run has it, or the file cannot be written.
        """
        holder = {"pid": os.getpid(), "started": started, "folder": str(Path.cwd())}
        try:
            make_private(self.path.parent)
            return Claim(self.lock, holder)
        except ClaimedError as error:
            raise in_use(number, error.holder, self.path) from None
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, record: PointedRecord) -> None:
        """Write what is to be put back; it is on disk on return, or else a :exc:`NumberError` is raised."""
        try:
            write_private(self.path, record.to_json())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def end(self, restored: Restored) -> None:
        """Remove it now that the number was put back; what may be needed is kept aside if that was left alone."""
        if restored == "left" and self.path.exists():
            self.path.replace(self.kept)
        else:
            self.path.unlink(missing_ok=True)


def in_use(number: str, holder: Mapping[str, object], path: Path) -> NumberError:
    """Return the error for a number that rings at a living run."""
    return NumberError(
        f"{number} rings at another run: {_described(holder)} ({path})",
        hint="stop it, which puts the number back; or use another number",
    )


def _described(holder: Mapping[str, object]) -> str:
    return f"process {holder.get('pid', 'unknown')}, started in {holder.get('folder', 'an unknown folder')}"


def _unwritable(path: Path, error: OSError) -> NumberError:
    return NumberError(
        f"what the number's settings were cannot be kept in {path}: {error.strerror or error}",
        hint="name a folder that can be written to in WSVOICE_STATE_DIR",
    )


def account_for_numbers(provider: str | None, credentials: Mapping[str, str]) -> Account:
    """
    Return the account whose numbers are meant.

    Args:
        provider: The provider's name; ``None`` for the only one whose credentials are set.
        credentials: By environment variable name.

    Raises:
        ConfigError: If it is not clear whose account is meant, or wsvoice knows no numbers of that provider's.
    """
    if provider is not None:
        account = _load(provider, credentials)
        if account is None:
            raise ConfigError(
                f"wsvoice cannot point numbers of {load_company(provider).title}'s",
                hint="set the number's webhook by hand; the provider's page in the docs says where",
            )
        return account
    able = [account for each in PROVIDERS if (account := _load(each, credentials)) is not None and _is_ready(account)]
    if len(able) != 1:
        told = (
            f"credentials of {' and '.join(each.title for each in able)} are set" if able else "no credentials are set"
        )
        raise ConfigError(f"it is not clear whose numbers are meant: {told}", hint="name the provider: `-t twilio`")
    return able[0]


def _load(provider: str, credentials: Mapping[str, str]) -> Account | None:
    """Return a provider's account; ``None`` if it has no API for numbers, nor a way by hand."""
    account = find_account(provider, credentials)
    return account if account is not None and (account.has_numbers or is_pointed_by_hand(account)) else None


def _is_ready(account: Account) -> bool:
    try:
        account.check_credentials()
    except ConfigError:
        return False
    return account.has_numbers


def is_pointed_by_hand(account: Account) -> bool:
    """Whether the company's API cannot point a number, and the user is told how to."""
    return bool(account.how_to_point("+15551234567", ServerAddresses("https://bot.invalid/")))


def number_files(state: Path) -> Iterator[NumberFile]:
    """The files of every number that rings at a run, or was left so by one that died."""
    return (NumberFile.at(path) for path in sorted((state / "numbers").glob("[!.]*-*.json")))


def describe_restored(file: NumberFile, was: str, restored: Restored) -> str:
    """Return in words what became of putting the number of a file back."""
    number, place = f"+{file.digits}", without_secrets(was) or "nowhere"
    return {
        "restored": f"{number} rings at {place} again",
        "unchanged": f"{number} had been put back before; it rings at {place}",
        "left": f"{number} was pointed elsewhere since, and is left alone; it rang at {place}, and {file.kept} has "
        "its former settings",
    }[restored]


async def find_number(account: Account, number: str) -> PhoneNumber:
    """Return the account's `number`; if it is not the account's, the error names those that are like it."""
    try:
        return await carry_out(account.find_number(number))
    except ApiError as error:
        if error.kind != "number":
            raise
        try:
            owned = [each.number for each in await carry_out(account.numbers())]
        except ApiError:
            raise error from None
        hint = f"the account has no number; {account.title} sells them"
        if owned:
            shown = ", ".join(nearest(number, owned)[:SHOWN_NUMBERS])
            more = f", and {len(owned) - SHOWN_NUMBERS} more" if len(owned) > SHOWN_NUMBERS else ""
            hint = f"the account has {shown}{more}"
        raise ApiError(error.kind, error.message, code=error.code, hint=hint) from error


def check_usable(account: Account, number: PhoneNumber) -> None:
    """Raise :exc:`NumberError` if calls to `number` cannot be sent to a server."""
    if not number.has_voice:
        shows = f"`wsvoice number list -t {account.name}` shows those that do"
        raise NumberError(f"{number.number} takes no calls: it has no voice", hint=shows)
    if number.obstacle:
        raise NumberError(f"{number.number} cannot be pointed: {number.obstacle}", hint=number.hint or None)


async def account_id(account: Account) -> str:
    """Return the id of the account; empty where the API does not say, or not to these credentials."""
    try:
        return (await carry_out(account.describe())).account_id
    except ApiError:
        return ""


async def restore_left(file: NumberFile, account: Account) -> tuple[PointedRecord, Restored] | None:
    """
    Put back a number that a run left pointed when it died, and remove the file; ``None`` if there is none.

    Raises:
        NumberError: If the run lives, the file is unusable, or the number is another account's.
        ApiError: If the company refuses it, or cannot be reached; the file remains.
    """
    record = file.read()
    if record is None:
        return None
    claim = file.claim(record.number, _now())
    try:
        return await _restore_claimed(file, account)
    finally:
        claim.release()


async def _restore_claimed(file: NumberFile, account: Account) -> tuple[PointedRecord, Restored] | None:
    # Read again, for the run may have ended in between.
    record = file.read()
    if record is None:
        return None
    account.check_credentials()
    ours = await account_id(account)
    if record.account_id and ours and record.account_id != ours:
        raise NumberError(
            f"{record.number} was pointed with the account {record.account_id}, and the credentials are of {ours}",
            hint=f"set the credentials of {record.account_id} ({account.credentials_place}), then {_RESTORE}",
        )
    restored = await carry_out(account.restore(record.saved, record.addresses))
    file.end(restored)
    return record, restored


class PointedNumber:
    """
    A number that rings at this process from :meth:`point` to :meth:`put_back`.

    Attributes:
        found: The number as it was found; ``None`` before :meth:`claim`.
        left: What was put back for a run that had died, by :meth:`claim`.

    Args:
        account: The account that has it.
        number: In E.164.
        state: The folder for state.
        sleep: Waits so many seconds for the API's sake, while the number is pointed; may raise to give up.
    """

    def __init__(
        self,
        account: Account,
        number: str,
        state: Path,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.account = account
        self.number = number
        self.file = NumberFile(state, account.name, number)
        self.found: PhoneNumber | None = None
        self.left: tuple[PointedRecord, Restored] | None = None
        self._sleep = sleep
        #: Of the number, and of what it shares.
        self._claim: Claim | None = None
        self._shared: Claim | None = None
        self._record: PointedRecord | None = None
        self._account_id = ""
        self._started = _now()

    @property
    def is_pointed(self) -> bool:
        """Whether it may point here, so that there is something to put back."""
        return self._record is not None

    async def claim(self) -> PhoneNumber:
        """
        Find the number and make sure that it can be pointed, by this process alone; nothing is changed.

        A number that was left pointed by a run that died is put back first.

        Raises:
            ConfigError: If credentials are missing.
            NumberError: If another run has the number, or it cannot be pointed.
            ApiError: If the company refuses it, or cannot be reached.
        """
        self.account.check_credentials()
        self._claim = self.file.claim(self.number, self._started)
        try:
            if self.file.path.exists():
                self.left = await self._restore_left()
            self.found = await self._find()
            if self.found.shares:
                self._shared = self._claim_shared(self.found.shares)
            self._account_id = await account_id(self.account)
        except BaseException:
            self.release()
            raise
        return self.found

    def _claim_shared(self, name: str) -> Claim:
        """Claim what other numbers share, so that no other run changes it, nor has left it changed."""
        lock = self.file.lock.with_stem(f"{self.account.name}-{re.sub('[^A-Za-z0-9]+', '-', name)}")
        try:
            claim = Claim(lock, {"pid": os.getpid(), "started": self._started, "folder": str(Path.cwd())})
        except ClaimedError as error:
            raise NumberError(
                f"{self.number} shares {name} with a number that rings at another run: {_described(error.holder)}",
                hint="stop it, which puts both back; or use a number that shares nothing with it",
            ) from None
        for file in number_files(self.file.path.parents[1]):
            with suppress(NumberError):
                left = file.read()
                if left is not None and (left.provider, left.shares) == (self.account.name, name):
                    claim.release()
                    break
        else:
            return claim
        raise NumberError(
            f"{self.number} shares {name} with {left.number}, which was left pointed by a run that died",
            hint=f"`wsvoice number restore {left.number}` puts both back",
        )

    async def _find(self) -> PhoneNumber:
        found = await find_number(self.account, self.number)
        check_usable(self.account, found)
        return found

    async def _restore_left(self) -> tuple[PointedRecord, Restored] | None:
        try:
            return await _restore_claimed(self.file, self.account)
        except ApiError as error:
            raise NumberError(
                f"{self.number} was left pointed by a run that died, and cannot be put back: {error.message}",
                hint=error.hint or f"mend that, then {_RESTORE}; its settings are in {self.file.path}",
            ) from error

    async def point(self, addresses: ServerAddresses) -> None:
        """
        Point the claimed number at `addresses`; if that fails half-way, it is put back.

        It is looked at once more, for somebody may have changed it since, and what is put back is what was there last.

        Raises:
            NumberError: If its settings cannot be kept, it cannot be pointed by now, or it could not even be put back.
            ApiError: If the company refuses it, or cannot be reached.
        """
        assert self._claim is not None, "it is claimed first"
        self.found = await self._find()
        await self._point(self.found, addresses)

    async def _point(self, found: PhoneNumber, addresses: ServerAddresses) -> None:
        def save(saved: Saved) -> None:
            record = PointedRecord(
                provider=self.account.name,
                account_id=self._account_id,
                number=self.number,
                saved=dict(saved),
                addresses=addresses,
                was=without_secrets(found.points_at),
                pid=os.getpid(),
                started=self._started,
                folder=str(Path.cwd()),
                pointed=_now(),
                shares=found.shares,
            )
            self.file.write(record)
            self._record = record

        try:
            await carry_out(self.account.point(found, addresses, save), sleep=self._sleep)
        except Exception as error:
            await self._take_back(error)
            raise

    async def _take_back(self, error: Exception) -> None:
        try:
            await self.put_back()
        except ApiError as second:
            raise NumberError(
                f"{self.number} could not be pointed ({error}), and may not be as it was: {second.message}",
                hint=f"{_RESTORE} puts it back; its settings are in {self.file.path}",
            ) from error

    async def move(self, addresses: ServerAddresses) -> bool:
        """
        Point it at other addresses; false if it points elsewhere by now and was left alone.

        What was made for the old ones is taken back first, so that nothing of it remains. If that or the rest fails,
        it may be asked for again.
        """
        before = self.found.points_at if self.found is not None else ""
        if await self.put_back() == "left":
            return False
        found = await self._find()
        if found.points_at != before:
            return False
        self.found = found
        await self._point(found, addresses)
        return True

    async def put_back(self) -> Restored | None:
        """
        Put the number back as it was, and remove the file; ``None`` if there is nothing to put back.

        Raises:
            ApiError: If the company refuses it, or cannot be reached; the file remains.
        """
        restored = await self._restore()
        if restored is not None:
            self.file.end(restored)
            self._record = None
        return restored

    async def _restore(self) -> Restored | None:
        record = self._record
        return None if record is None else await carry_out(self.account.restore(record.saved, record.addresses))

    def release(self) -> None:
        """Let another run have the number; its file remains if it was not put back."""
        for claim in (self._shared, self._claim):
            if claim is not None:
                claim.release()
        self._claim = self._shared = None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
