"""
Telephone calls from real SIP phones through a real Asterisk to ``wsvoice run``, with the lines that it prints itself.

All calls but the twenty are placed at once when the first test asks for its own, since most of a call is waiting.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.asterisk.pbx import Pbx, asterisk
from tests.asterisk.phone import PATIENCE_S, RATE, Phone, phone
from tests.asterisk.programs import Programs
from tests.process import ServerProcess, server_process
from tests.signals import share_heard, speech_like, tone

BOT = str(Path(__file__).with_name("bot.py"))
PASSWORD = 'se;cret: "x"'

LONG_HZ, SHORT_HZ = 440, 1000
LONG_S, SHORT_S = 10, 1
FLOOD_S = 30
SOUNDS = {
    "long": tone(LONG_HZ, LONG_S * 1000, RATE),
    "short": tone(SHORT_HZ, SHORT_S * 1000, RATE),
    # Nothing of it is near 4 kHz, where a resampler takes some away.
    "word": speech_like(1500, RATE, seed=3),
    # Each second has its own tone.
    "flood": b"".join(tone(300 + 100 * second, 1000, RATE) for second in range(FLOOD_S)),
}

#: Where a bot that repeats what it hears is reached, the dial string of that number, and the keys that are pressed.
ECHOES = {
    "100": ("c(ulaw)f(json)", "123#"),
    "301": ("c(ulaw)", "456*"),
    "302": ("c(slin16)f(json)", "7890"),
    "303": ("c(slin16)", "0987"),
}


@dataclass(frozen=True)
class Exchange:
    """An Asterisk whose extensions lead to `server`, and some to `public`, which asks for the password."""

    pbx: Pbx
    server: ServerProcess
    public: ServerProcess
    folder: Path

    def phone(self, extension: str, microphone: bytes = b"") -> AbstractContextManager[Phone]:
        """A telephone that is going to call `extension`; it says `microphone` and is silent then."""
        folder = self.folder / extension
        folder.mkdir()
        silence = bytes(2 * RATE * 120)
        return phone(self.pbx.programs, folder, microphone + silence, number=f"+15550{extension}")

    def echo(self, extension: str) -> bytes:
        """Say a sentence, press keys, hang up; return what was heard."""
        keys = ECHOES[extension][1]
        with self.phone(extension, bytes(RATE) + sentence(extension)) as handset:
            handset.call(self.pbx.sip_uri(extension))
            wait_heard(sentence(extension), handset)
            handset.press(keys)
            self.server.logged(f"the bot has got the keys {keys}", timeout_s=PATIENCE_S)
            handset.hang_up()
            self.server.logged(f"; digits {keys}", timeout_s=PATIENCE_S)
            return handset.heard()

    def interrupt(self, extension: str, *, by_voice: bool = False) -> bytes:
        """Interrupt a long tone; return what was heard until the bot hung up."""
        microphone = bytes(2 * RATE * 3) + speech_like(1000, RATE) if by_voice else b""
        with self.phone(extension, microphone) as handset:
            handset.call(self.pbx.sip_uri(extension))
            if not by_voice:
                wait_until(lambda: heard_s(LONG_HZ, handset.heard()) > 1, handset)
                handset.press("1")
            handset.wait("CALL_CLOSED")
            return handset.heard()

    def flood(self) -> tuple[bytes, float, float]:
        """Return what was heard until all was written, how long a message waited at most, and what was queued; in s."""
        with self.phone("204") as handset:
            handset.call(self.pbx.sip_uri("204"))
            log = self.server.logged("; queued: ", timeout_s=FLOOD_S + PATIENCE_S)
            heard = handset.heard()
            handset.press("1")
            handset.wait("CALL_CLOSED")
            found = re.search(r"one message waited (\S+) s; queued: (\d+)$", log, re.MULTILINE)
            assert found is not None
            return heard, float(found[1]), int(found[2]) * 0.02

    def last_word(self) -> bytes:
        """Return what was heard until the bot hung up."""
        with self.phone("400") as handset:
            handset.call(self.pbx.sip_uri("400"))
            handset.wait("CALL_CLOSED")
            return handset.heard()

    def is_admitted(self, extension: str) -> bool:
        """Whether a call is answered."""
        with self.phone(extension) as handset:
            handset.dial(self.pbx.sip_uri(extension))
            if extension == "601":
                handset.wait("CALL_ESTABLISHED")
                handset.hang_up()
            handset.wait("CALL_CLOSED")
            return any(each["type"] == "CALL_ESTABLISHED" for each in handset.events)


def sentence(extension: str) -> bytes:
    """What the phone says that calls `extension`."""
    return speech_like(2000, RATE, seed=int(extension))


def wait_until(is_so: Callable[[], bool], handset: Phone) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, handset.log()
        time.sleep(0.1)


def wait_heard(sound: bytes, handset: Phone) -> None:
    """Wait until a phone has heard as much as `sound` is, and half a second more."""
    wait_until(lambda: level_db(handset.heard()) > level_db(sound) - 1, handset)
    length = len(handset.heard()) + RATE
    wait_until(lambda: len(handset.heard()) > length, handset)


def heard_s(freq_hz: float, heard: bytes) -> float:
    """Return for how long a tone is nearly all that is heard, by pieces of 20 ms."""
    samples = np.frombuffer(heard[: len(heard) // 2 * 2], "<i2").astype(float)
    pieces = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    wave = np.exp(-2j * np.pi * freq_hz / RATE * np.arange(160))
    # The square of a sine's amplitude, and twice the mean square: alike where there is nothing else.
    level, total = np.abs(pieces @ wave / 80) ** 2, 2 * np.mean(pieces**2, axis=1)
    return float(np.sum((total > 100**2) & (level > 0.8 * total))) * 0.02


def level_db(sound: bytes) -> float:
    """Return a sound's whole energy, wherever in it that is."""
    samples = np.frombuffer(sound[: len(sound) // 2 * 2], "<i2").astype(float)
    return 10 * float(np.log10(np.sum(samples**2) + 1))


def printed(server: ServerProcess) -> tuple[str, str]:
    """Return the lines for ``websocket_client.conf`` and for ``extensions.conf`` that a server has printed."""
    log = server.logged("; then: sudo asterisk")
    _, _, lines = log.partition("; /etc/asterisk/websocket_client.conf\n")
    client, _, lines = lines.partition("; /etc/asterisk/extensions.conf")
    lines = lines.partition("\n")[2].partition("; then: sudo asterisk")[0]
    # Phones have a context of their own here, and all numbers share it.
    return client, lines.removeprefix("[telephones]\n")


@pytest.fixture(scope="module")
def exchange(programs: Programs) -> Iterator[Exchange]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbx")))
        names = "pbx", "local", "public"
        folders = [folder / name for name in names]
        for each in folders:
            (each / "sounds").mkdir(parents=True)
            for name, pcm in SOUNDS.items():
                (each / "sounds" / name).write_bytes(pcm)
        arguments = "-t", "asterisk"
        with ThreadPoolExecutor() as starting:
            servers = [
                starting.submit(stack.enter_context, server_process(folders[1], BOT, *arguments)),
                starting.submit(
                    stack.enter_context,
                    server_process(folders[2], BOT, *arguments, "-x", "voice.example.com", ASTERISK_PASSWORD=PASSWORD),
                ),
            ]
            pbx = stack.enter_context(asterisk(programs, folders[0]))
        server, public = (each.result() for each in servers)

        client, extension = printed(server)
        # What the page says to set up, to the letter; and other numbers and dial strings.
        extensions = [extension, *(extension.replace("100", number) for number in ("_20X", "_5XX"))]
        extensions += [
            extension.replace("100", number).replace("c(ulaw)f(json)", options)
            for number, (options, _) in ECHOES.items()
            if number != "100"
        ]
        waits = "Dial(WebSocket/wsvoice/c(ulaw)f(json),,g)\n same => n,Wait(1)"
        extensions.append(extension.replace("100", "400").replace("Dial(WebSocket/wsvoice/c(ulaw)f(json))", waits))
        # Nobody has TLS for that name, so Asterisk dials the server behind it.
        public_client = printed(public)[0].replace("wss://voice.example.com/", public.url.replace("http", "ws"))
        public_client = public_client.replace("tls_enabled = yes", "")
        clients = [client, public_client.replace("[wsvoice]", "[right]")]
        clients.append(public_client.replace("[wsvoice]", "[wrong]").replace("cret", "cert"))
        for number, name in {"600": "wrong", "601": "right"}.items():
            extensions.append(extension.replace("100", number).replace("/wsvoice/", f"/{name}/"))
        pbx.configure("\n".join(extensions), "\n".join(clients))
        yield Exchange(pbx, server, public, folder)


@pytest.fixture(scope="module")
def calls(exchange: Exchange) -> Iterator[dict[str, Future]]:
    """All calls, by the number that is dialled."""
    place: dict[str, Callable] = {number: partial(exchange.echo, number) for number in ECHOES}
    place |= {number: partial(exchange.interrupt, number) for number in ("201", "203")}
    place["202"] = partial(exchange.interrupt, "202", by_voice=True)
    place |= {"204": exchange.flood, "400": exchange.last_word}
    place |= {number: partial(exchange.is_admitted, number) for number in ("600", "601")}
    with ThreadPoolExecutor(len(place)) as threads:
        yield {number: threads.submit(call) for number, call in place.items()}


@pytest.mark.parametrize("number", ECHOES, ids=[f"{dialled} {options}" for dialled, (options, _) in ECHOES.items()])
def test_a_call(calls: dict[str, Future], exchange: Exchange, number: str) -> None:
    heard, log = calls[number].result(), exchange.server.log()
    assert share_heard(sentence(number), heard, RATE, piece_ms=100) > 0.7
    assert abs(level_db(heard) - level_db(sentence(number))) < 1
    assert re.search(rf"ended by the caller after .*; digits {re.escape(ECHOES[number][1])}$", log, re.MULTILINE)
    if "json" in ECHOES[number][0]:
        assert f"+15550{number} calls {number}," in log


@pytest.mark.parametrize("number", ["201", "202", "203"], ids=["key", "voice", "FLUSH_MEDIA"])
def test_an_interruption_stops_the_bot(calls: dict[str, Future], number: str) -> None:
    heard = calls[number].result()

    # A second until a key is pressed, or three from the answer until the caller speaks.
    assert 0.5 < heard_s(LONG_HZ, heard) < 6
    assert heard_s(SHORT_HZ, heard) > 0.6 * SHORT_S


def test_the_last_word_is_heard_whole(calls: dict[str, Future], exchange: Exchange) -> None:
    heard = calls["400"].result()
    word = SOUNDS["word"]
    assert share_heard(word, heard, RATE, piece_ms=100) > 0.7
    assert share_heard(word[-RATE:], heard, RATE, piece_ms=100) > 0.7
    assert abs(level_db(heard) - level_db(word)) < 0.5
    assert re.search(r"\+15550400 calls 400,.*\n(.*\n)*.*ended by the bot", exchange.server.log())


def test_the_password(calls: dict[str, Future], exchange: Exchange) -> None:
    assert calls["601"].result()
    assert not calls["600"].result()
    log = exchange.public.log()
    assert "+15550601 calls 601," in log
    assert "calls 600," not in log
    assert "the stream carries no credentials, or wrong ones" in log


def test_twenty_calls_at_once(exchange: Exchange) -> None:
    frequencies = {str(500 + number): 300 + 150 * number for number in range(20)}

    def talk(extension: str, handset: Phone) -> bytes:
        handset.call(exchange.pbx.sip_uri(extension))
        wait_heard(tone(frequencies[extension], 1500, RATE), handset)
        handset.hang_up()
        return handset.heard()

    with ExitStack() as stack, ThreadPoolExecutor(len(frequencies)) as threads:
        phones = {
            extension: stack.enter_context(exchange.phone(extension, bytes(RATE) + tone(freq_hz, 1500, RATE)))
            for extension, freq_hz in frequencies.items()
        }
        recordings = dict(zip(phones, threads.map(talk, phones, phones.values()), strict=True))
    for extension, heard in recordings.items():
        for other, freq_hz in frequencies.items():
            if other == extension:
                assert heard_s(freq_hz, heard) > 1, extension
            else:
                assert heard_s(freq_hz, heard) < 0.1, (extension, other)


def test_a_flood_is_slowed_down_and_nothing_of_it_is_lost(calls: dict[str, Future]) -> None:
    heard, longest_s, queued_s = calls["204"].result()
    seconds = [heard_s(300 + 100 * second, heard) for second in range(FLOOD_S)]

    # Asterisk pauses the audio at 18 s, and 16 s are left when it goes on.
    assert longest_s > 1.5
    assert abs(sum(seconds) + queued_s - FLOOD_S) < 1.5
    whole = [second > 0.7 for second in seconds]
    assert whole.index(False) == sum(whole)
