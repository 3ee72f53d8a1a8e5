"""
The phone in a real browser, whose microphone plays a recording: it calls an echo and hears itself.

Needs Chromium. What axe-core finds is looked at where its package is installed, as
``tests/page/test_browser.py`` says.
"""

from __future__ import annotations

import base64
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.page.chromium import PROGRAM, Page, chromium
from tests.page.test_browser import AXE
from tests.process import ServerProcess, server_process
from wsvoice.audio import resample
from wsvoice.providers import PROVIDERS

ROOT = Path(__file__).parents[2]
QUESTION = ROOT / "src" / "wsvoice" / "dial" / "question.wav"
RATE = 8000
#: What is compared at once: about a syllable. Between two, a jitter buffer may leave something out.
WINDOW = RATE * 200 // 1000
#: Where voices are compared, in Hz: echo cancellation shifts the phases of what is lower, and telephones end above it.
BAND_HZ = (300, 3300)

#: A syllable that was said and is heard is mostly more alike than that, after echo cancellation and a jitter buffer;
#: less than half of those of other speech are, and none of noise.
ALIKE = 0.55
#: How many of the syllables that were heard have to be that much alike.
MOST = 0.7

#: Keeps what the earpiece plays, at the page's rate.
TAP = """
if (!window.played) {
  window.played = [];
  const tap = sound.context.createScriptProcessor(1024, 1, 1);
  tap.onaudioprocess = ({ inputBuffer }) => window.played.push(inputBuffer.getChannelData(0).slice());
  sound.earpiece.connect(tap).connect(sound.context.destination);
}
window.played.length = 0;
"""
#: For how many seconds something was to be heard in what was kept.
HEARD_S = """(() => {
  let loud = 0;
  for (const piece of window.played) for (const sample of piece) if (Math.abs(sample) > 0.01) loud++;
  return loud / sound.rate;
})()"""
PLAYED = """(() => {
  const all = Int16Array.from(window.played.flatMap((piece) => [...piece]), (sample) => Math.round(sample * 32767));
  let text = "";
  for (const byte of new Uint8Array(all.buffer)) text += String.fromCharCode(byte);
  return btoa(text);
})()"""

pytestmark = [pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), str(ROOT / "examples" / "echo.py"), "--phone") as server:
        yield server


@pytest.fixture(scope="module")
def url(server: ServerProcess) -> str:
    server.logged("phone: ", timeout_s=30)
    shown = server.logged("/\n", since=server.log().index("phone: "))
    found = re.match(r"phone: +(http://127\.0\.0\.1:\S+/)\n", shown)
    assert found is not None, server.log()
    return found[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    options = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    folder = tmp_path_factory.mktemp("chromium")
    with chromium(folder, *options, f"--use-file-for-fake-audio-capture={QUESTION}") as page:
        yield page


@pytest.fixture
def page(browser: Page, url: str) -> Page:
    """A page that is ready to dial; opened once, because the microphone is asked for once."""
    browser.events.clear()
    if browser.run("location.href") != url or browser.run("phone.state") not in ("idle", "ended"):
        open_phone(browser, url)
    return browser


def open_phone(browser: Page, url: str) -> None:
    browser.ask("Page.navigate", url="about:blank")
    browser.until("location.href === 'about:blank'")
    browser.ask("Page.navigate", url=url)
    browser.until(f"location.href === {url!r} && phone.state === 'idle'", 30)


def call(page: Page, provider: str = "twilio") -> None:
    """Choose a provider and dial, as a user does."""
    page.run(f"byId('transport').value = {provider!r}, byId('transport').dispatchEvent(new Event('change'))")
    page.run("document.activeElement.blur()")
    page.key("Enter")
    page.until("phone.state === 'in-call'", 30)


def hang_up(page: Page) -> None:
    page.key("Escape")
    page.until("phone.state === 'ended'", 30)


def played(page: Page) -> NDArray[np.float64]:
    """Return what the page has played since it was tapped, at 8 kHz."""
    pcm = base64.b64decode(page.run(PLAYED))
    return np.frombuffer(resample(pcm, int(page.run("sound.rate")), RATE), "<i2").astype(float)


def recording() -> NDArray[np.float64]:
    """Return what the microphone plays over and over, at 8 kHz."""
    with wave.open(str(QUESTION)) as file:
        pcm, rate = file.readframes(file.getnframes()), file.getframerate()
    return np.frombuffer(resample(pcm, rate, RATE), "<i2").astype(float)


def in_band(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    spectrum, frequencies = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / RATE)
    spectrum[(frequencies < BAND_HZ[0]) | (frequencies > BAND_HZ[1])] = 0
    return np.fft.irfft(spectrum, len(samples))


def likenesses(heard: NDArray[np.float64], said: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Return how much alike each syllable that was heard is to the one in `said` that is most like it.

    Returns:
        A row for each: the correlation coefficient, at most 1, and how many dB louder what was heard is.
    """
    heard, said = in_band(heard), in_band(said)
    around = np.concatenate([said, said[:WINDOW]])
    power = np.convolve(around * around, np.ones(WINDOW), "valid")
    found = []
    for at in range(0, len(heard) - WINDOW, WINDOW // 4):
        word = heard[at : at + WINDOW]
        if (energy := float(word @ word)) < WINDOW * 300**2:
            continue
        products = np.correlate(around, word, "valid")
        # Where the recording is quiet, nothing is alike.
        scores = products / np.sqrt(energy * np.maximum(power, WINDOW * 100**2))
        place = int(np.argmax(scores))
        found.append((scores[place], 10 * np.log10(energy / power[place])))
    return np.array(found).reshape(-1, 2)


def likeness(heard: NDArray[np.float64], said: NDArray[np.float64]) -> tuple[float, float, float]:
    """
    Return how much of what was heard was said, and how well.

    Returns:
        The share of the syllables that are alike; and of all, the medians of the likeness and of how many dB louder.
    """
    found = likenesses(heard, said)
    if not len(found):
        return 0.0, 0.0, 0.0
    alike, louder_db = np.median(found, axis=0)
    return float(np.mean(found[:, 0] > ALIKE)), float(alike), float(louder_db)


def test_what_is_compared_is_told_apart() -> None:
    said = recording()
    assert likeness(said[1000:9000], said) == pytest.approx((1, 1, 0), abs=0.01)
    assert likeness(said[1000:9000] / 2, said) == pytest.approx((1, 1, -6), abs=0.1)
    assert likenesses(said[::-1][1000:9000], said)[:, 0].max() < 0.75
    assert likeness(said[::-1], said)[0] < 0.5
    noise = np.random.default_rng(1).normal(0, 2000, RATE)
    assert likenesses(noise, said)[:, 0].max() < 0.4
    # One good syllable is no call: here three of four are noise.
    mixed = np.concatenate([said[1000:9000], np.tile(noise, 3)])
    assert likeness(mixed, said)[0] < MOST / 2
    assert likeness(np.zeros(RATE), said) == (0, 0, 0)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_echo_is_heard_on_every_provider(page: Page, provider: str) -> None:
    call(page, provider)
    page.run(TAP)

    # On a busy machine the browser's own sound breaks off now and then; each time all that is heard anew is judged.
    for _ in range(6):
        page.run("window.played.length = 0")
        page.until(f"{HEARD_S} > 1", 30)
        share, alike, louder_db = likeness(played(page), recording())
        if share >= MOST:
            break
    hang_up(page)
    print(f"{provider}: {share:.2f} alike, {alike:.3f}, {louder_db:+.1f} dB")
    assert share >= MOST
    assert abs(louder_db) < 3
    assert page.run("byId('state').textContent") == "You hung up"
    # The tap is the tests' own.
    assert [each for each in page.faults() if "ScriptProcessorNode" not in each] == []


def test_keys_are_pressed_and_levels_and_waits_are_shown(page: Page) -> None:
    call(page)
    page.key("4")
    page.run("[...byId('keypad').children].find(each => each.textContent === '#').click()")
    page.until("byId('events').textContent.includes('presses 4') && byId('events').textContent.includes('presses #')")
    assert page.run("byId('pressed').textContent") == "4#"
    page.until("byId('said').level > 0.4 && byId('heard').level > 0.4")
    page.until("/0:0[1-9]/.test(byId('clock').textContent)")
    hang_up(page)


def test_nothing_is_said_while_muted(page: Page) -> None:
    call(page)
    page.run(TAP)
    page.until(f"{HEARD_S} > 0.1", 30)
    page.key("m")
    assert page.run("byId('mute').getAttribute('aria-pressed')") == "true"
    # What was on its way is heard yet.
    page.until("(byId('heard').level ?? 0) === 0", 30)
    page.run("window.played.length = 0")
    page.until("window.played.length * 1024 > sound.rate")
    assert page.run(HEARD_S) == 0
    page.key("m")
    page.until(f"{HEARD_S} > 0.1", 30)
    hang_up(page)


#: Holds the browser's answer back, as somebody does who thinks about it, and counts how often it is asked.
SLOW_PROMPT = """
window.asked = [];
navigator.mediaDevices.getUserMedia = (wanted) => new Promise((resolve, reject) => {
  const real = MediaDevices.prototype.getUserMedia.bind(navigator.mediaDevices);
  window.asked.push(() => real(wanted).then((stream) => { window.streams.push(stream); resolve(stream); }, reject));
});
window.streams = [];
"""


def test_the_microphone_is_asked_for_once_even_if_the_call_is_given_up_meanwhile(page: Page) -> None:
    open_phone(page, page.run("location.href"))
    page.run(SLOW_PROMPT + "0")
    page.key("Enter")
    page.until("window.asked.length === 1")
    page.key("Escape")
    assert page.run("phone.state") == "idle"
    page.key("Enter")
    assert page.run("phone.state") == "asking"
    # Whatever the second dial does before it waits is done by then.
    page.run("new Promise((resolve) => setTimeout(resolve, 50))")
    page.run("window.asked.forEach((answer) => answer())")
    page.until("phone.state === 'in-call'", 30)
    hang_up(page)
    assert page.run("window.asked.length") == 1
    assert page.run("window.streams.length === 1 && window.streams[0] === sound.stream") is True
    # Nor is dialled twice.
    assert "goes on already" not in page.run("byId('trouble').innerText")


def test_a_microphone_that_is_allowed_too_late_hears_nothing(page: Page) -> None:
    open_phone(page, page.run("location.href"))
    page.run(SLOW_PROMPT + "0")
    page.key("Enter")
    page.until("window.asked.length === 1")
    page.key("Escape")
    page.run("window.asked[0]()")
    page.until("sound.hasMicrophone && !sound.asking")
    assert page.run("phone.state") == "idle"
    assert page.run("sound.stream.getAudioTracks().some((track) => track.enabled)") is False


def test_the_microphone_is_off_between_calls_and_while_muted(page: Page) -> None:
    is_on = "sound.stream.getAudioTracks().every((track) => track.enabled)"
    call(page)
    assert page.run(is_on) is True
    page.key("m")
    assert page.run(is_on) is False
    page.key("m")
    assert page.run(is_on) is True
    hang_up(page)
    assert page.run(is_on) is False
    call(page)
    assert page.run(is_on) is True
    page.until("byId('said').level > 0.4", 30)
    hang_up(page)


def test_the_call_is_shown_and_saved_once_it_is_over(page: Page, server: ServerProcess) -> None:
    call(page)
    page.until("byId('heard').level > 0.4", 30)
    page.key("h")
    page.until("phone.state === 'ended' && !byId('over').hidden", 30)
    page.until("document.querySelector('iframe').contentDocument === null")
    frame = page.run("document.querySelector('iframe').src")
    assert page.run("location.pathname.split('/')[1]") not in frame
    folder = server.log_file.parent
    page.run("byId('file').value = 'from-the-browser', byId('save').requestSubmit()")
    page.until("byId('saved').textContent.startsWith('Saved: from-the-browser.call.toml')")
    assert (folder / "from-the-browser.call.toml").is_file()
    assert "wsvoice test from-the-browser.call.toml" in page.run("byId('saved').textContent")
    page.run("byId('save').requestSubmit()")
    page.until("byId('saved').textContent.includes('is there already')")
    open_phone(page, page.run("location.href"))


def test_the_calls_page_plays_in_the_sandbox(page: Page) -> None:
    call(page)
    page.until("byId('heard').level > 0.4", 30)
    hang_up(page)
    here, there = page.run("location.href"), page.run("byId('open-page').href")
    page.events.clear()
    page.ask("Page.navigate", url=there)
    page.until("document.documentElement.dataset.ready === 'true'", 30)
    page.until("player.calls[0].audio.readyState >= 2")
    assert page.run("origin") == "null"
    assert page.faults() == []
    open_phone(page, here)


def test_wrong_settings_are_said_in_the_page(page: Page) -> None:
    page.run("byId('param').value = 'no equals'")
    page.run("dial()")
    page.until("!byId('trouble').hidden")
    assert "key=value" in page.run("byId('trouble').innerText")
    page.run("byId('param').value = ''")
    call(page)
    assert page.run("byId('trouble').hidden") is True
    hang_up(page)


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; tests/page/test_browser.py says how")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, theme: str) -> None:
    page.ask("Page.setBypassCSP", enabled=True)
    open_phone(page, page.run("location.href"))
    page.run(f"setTheme('{theme}'), byId('settings').open = true")
    page.run(AXE.read_text(encoding="utf-8") + "; 0")
    look = (
        "axe.run(document, {resultTypes: ['violations'], iframes: false}).then(result => result.violations"
        ".filter(each => ['serious', 'critical'].includes(each.impact))"
        ".map(each => [each.id, ...each.nodes.map(node => node.html.slice(0, 200))]))"
    )
    assert page.run(look) == []
    call(page, "exotel")
    page.until("byId('events').children.length > 3")
    assert page.run(look) == []
    hang_up(page)
    page.run("showTrouble('A title.', 'Help.', true)")
    assert page.run(look) == []
    page.ask("Page.setBypassCSP", enabled=False)


@pytest.mark.parametrize(
    ("options", "title"),
    [
        (("--use-fake-device-for-media-stream", "--deny-permission-prompts"), "The microphone is blocked"),
        ((), "There is no microphone"),
    ],
)
def test_without_a_microphone_one_hears_and_presses_keys(
    url: str, tmp_path: Path, options: tuple[str, ...], title: str
) -> None:
    with chromium(tmp_path, *options) as page:
        open_phone(page, url)
        page.key("Enter")
        page.until("!byId('trouble').hidden", 30)
        assert title in page.run("byId('trouble').innerText")
        assert page.run("phone.state") == "idle"
        page.run("byId('without').click()")
        page.until("phone.state === 'in-call'", 30)
        page.key("7")
        page.until("byId('events').textContent.includes('presses 7')")
        assert page.run("byId('mute').disabled") is True
        hang_up(page)
