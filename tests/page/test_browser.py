"""
The page of a call in a real browser, opened from the disk.

Needs Chromium. What axe-core finds is looked at where its package is installed::

    npm install --prefix tests/browser --no-package-lock --ignore-scripts

It may be installed elsewhere; ``JS_CLIENT_MODULES`` then names that ``node_modules``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page.calls import make_call
from tests.page.chromium import PROGRAM, Page, chromium
from tests.page.test_page import hostile_call
from wsvoice.page import render_page

MODULES = Path(os.environ.get("JS_CLIENT_MODULES") or Path(__file__).parents[1] / "browser" / "node_modules")
AXE = MODULES / "axe-core" / "axe.min.js"
TEXTS = "[...document.querySelectorAll('#rows .row')].map(row => row.lastChild.textContent)"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    file = folder / "call.html"
    file.write_text(render_page([make_call(folder / "a.call", 25)]), encoding="utf-8")
    return file


@pytest.fixture
def page(browser: Page, file: Path) -> Page:
    browser.events.clear()
    browser.open(file)
    return browser


def test_it_opens_from_the_disk_and_asks_nobody_for_anything(page: Page, file: Path) -> None:
    page.until("player.calls[0].audio.readyState >= 2")
    first, *others = page.requests()
    assert first == file.as_uri()
    assert [url for url in others if not url.startswith("blob:null/")] == []
    assert page.faults() == []
    assert page.run("document.title") == "+15551230001 → +15551230002 · twilio · wsvoice"
    # The waveforms are drawn: there are colours of both ends in them.
    pixels = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
    canvases = "[...timeline.waves[0].getWrapper().querySelectorAll('.canvases canvas')]"
    assert page.run(f"{canvases}.map(canvas => new Set({pixels}).size > 2)") == [True, True]


def test_it_plays_and_the_cursor_moves(page: Page) -> None:
    page.key(" ")
    page.until("player.time > 0.3")
    assert page.run("byId('play').textContent") == "Pause"
    moved = page.run("new DOMMatrix(getComputedStyle(timeline.cursor).transform).m41")
    assert moved == pytest.approx(page.run("timeline.x(player.time)"), abs=10)
    assert moved > 0
    page.key(" ")
    page.until("!player.isPlaying")
    page.run("byId('listen').selectedIndex = 2, byId('listen').dispatchEvent(new Event('change'))")
    at = page.run("player.time")
    page.key(" ")
    page.until(f"player.time > {at} + 0.2")
    assert page.run("player.calls[0].gains.map(ears => ears.map(gain => gain.gain.value))") == [[0, 0], [1, 1]]
    page.key(" ")


def test_keys_move_and_zoom(page: Page) -> None:
    page.key("]")
    assert page.run("player.time") == pytest.approx(1.0, abs=0.2)
    page.key("]")
    assert page.run("player.time") == pytest.approx(11.0, abs=0.2)
    page.key("[")
    assert page.run("player.time") < 2
    page.key("Home")
    page.key("ArrowRight", modifiers=8)
    page.key("ArrowRight")
    page.key("ArrowLeft")
    assert page.run("player.time") == pytest.approx(10, abs=0.01)
    before = page.run("timeline.pxPerS")
    page.key("+")
    page.key("+")
    assert page.run("timeline.pxPerS") == pytest.approx(4 * before)
    page.until("timeline.scroller.scrollLeft > 0")
    assert page.run("timeline.waves[0].getScroll()") == page.run("timeline.scroller.scrollLeft")
    page.key("0")
    assert page.run("timeline.pxPerS") == pytest.approx(before)
    page.key("?")
    assert page.run("byId('keys').open") is True
    page.run("byId('keys').close()")


def test_the_wheel_zooms_where_the_pointer_is(page: Page) -> None:
    x, y = page.run("(({left, top}) => [left + 300, top + 60])(byId('lanes').getBoundingClientRect())")
    at = page.run("300 / timeline.pxPerS")
    page.ask("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-400)
    page.until("timeline.pxPerS > 2 * timeline.fitted")
    assert page.run(f"timeline.x({at})") == pytest.approx(300, abs=2)
    for kind in ("mousePressed", "mouseReleased"):
        page.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert page.run("player.time") == pytest.approx(at, abs=0.02)


def test_the_list_is_searched_filtered_and_walked_by_keys(page: Page) -> None:
    page.key("/")
    page.ask("Input.insertText", text="sentence-1")
    page.until("byId('found').textContent === '2 found'")
    page.until(f"{TEXTS}.length === 2")
    message, mark = page.run(TEXTS)
    assert message.startswith('{"event": "mark"')
    assert mark == "mark sentence-1 is reached"
    page.key("ArrowDown")
    page.key("ArrowDown")
    page.until("!byId('detail').hidden && byId('detail').textContent.includes('is reached')")
    assert page.run("player.time") == pytest.approx(16.1, abs=0.01)
    active = "document.getElementById(byId('rows').getAttribute('aria-activedescendant'))"
    page.until(f"{active}?.ariaPosInSet === '2'")
    assert page.run(f"[{active}.ariaSetSize, {active}.ariaSelected]") == ["2", "true"]
    page.run("byId('search').value = '', byId('search').dispatchEvent(new Event('input'))")
    page.until("byId('found').textContent.endsWith('rows')")
    rows = page.run("list.shown.length")
    page.run("[...byId('kinds').children].find(each => each.textContent.startsWith('Audio')).click()")
    assert page.run("list.shown.length") == rows + 2500
    # Only what is in view is an element.
    assert page.run("document.querySelectorAll('.row').length") < 80


def test_it_is_dark_where_the_system_is(browser: Page, file: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    try:
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.open(file)
        assert browser.run(ground) == "rgb(18, 21, 27)"
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        browser.until(f"{ground} === 'rgb(246, 247, 249)'")
    finally:
        browser.ask("Emulation.setEmulatedMedia", features=[])
    browser.run("byId('theme').click()")
    assert browser.run(ground) == "rgb(18, 21, 27)"


def test_two_calls_play_on_one_axis(browser: Page, tmp_path: Path) -> None:
    traces = [make_call(tmp_path / "a.call", 24), make_call(tmp_path / "b.call", 26, faster_s=0.2)]
    (tmp_path / "two.html").write_text(render_page(traces), encoding="utf-8")
    browser.events.clear()
    browser.open(tmp_path / "two.html")
    cells = "[...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    assert browser.run(cells) == [["1", "400 ms", "200 ms", "−200 ms"], ["2", "1100 ms", "900 ms", "−200 ms"]]
    browser.run("byId('listen').selectedIndex = 6, byId('listen').dispatchEvent(new Event('change'))")
    browser.run("goTo(12), timeline.zoom(8)")
    browser.until("timeline.left === timeline.scroller.scrollLeft && timeline.left > 0")
    assert browser.run("timeline.waves.map(wave => wave.getScroll() - timeline.left)") == [0, 0]
    browser.run("player.toggle()")
    browser.until("player.calls.every(call => call.audio.currentTime > 12.2)")
    browser.run("player.toggle()")
    assert browser.faults() == []


def test_a_hostile_call_runs_no_script(browser: Page, tmp_path: Path) -> None:
    (tmp_path / "hostile.html").write_text(render_page([hostile_call(tmp_path / "a.call")]), encoding="utf-8")
    browser.events.clear()
    browser.open(tmp_path / "hostile.html")
    for place in range(0, browser.run("list.shown.length")):
        browser.run(f"list.choose({place})")
    browser.run("timeline.lanes.dispatchEvent(new PointerEvent('pointermove', {clientX: 1000}))")
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.querySelector('h1').textContent").startswith("</script><script>window.hacked = 1")
    # Nothing was even tried: the policy had nothing to refuse.
    assert browser.faults() == []
    # And had something been, it would have been refused.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    browser.run("document.body.append(element('script', { text: 'window.hacked = 1' }))")
    browser.run("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert browser.run("typeof window.hacked") == "undefined"
    assert sum("Content Security Policy" in each for each in browser.faults()) >= 3


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; this file's first lines say how")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, theme: str) -> None:
    page.run(f"setTheme('{theme}'), list.choose(2)")
    page.run(AXE.read_text(encoding="utf-8") + "; 0")
    found = page.run(
        "axe.run(document, {resultTypes: ['violations']}).then(result => result.violations.map(each =>"
        " [each.impact, each.id, ...each.nodes.map(node => node.html.slice(0, 200))]))"
    )
    assert [each for each in found if each[0] in ("serious", "critical")] == []
    # The colours of each kind of row, on the ground of the chosen one.
    for place in range(0, 16):
        page.run(f"list.choose({place})")
        page.until(f"byId('row-{place}')?.ariaSelected === 'true'")
        rules = "{include: ['#list']}, {runOnly: ['color-contrast']}"
        assert page.run(f"axe.run({rules}).then(result => result.violations.length)") == 0


@pytest.mark.timeout(180)
def test_an_hours_call_opens_at_once(browser: Page, tmp_path: Path) -> None:
    if os.environ.get("HOUR") != "1":
        pytest.skip("HOUR=1 looks at an hour's call, which takes half a minute to write and draw")
    html = render_page([make_call(tmp_path / "a.call", 3600)])
    (tmp_path / "hour.html").write_text(html, encoding="utf-8")
    assert len(html) < 25_000_000
    took_s = browser.open(tmp_path / "hour.html")
    assert took_s < 3
    began = time.monotonic()
    browser.run('list.kinds.add(4), list.word = \'"chunk": "179999"\', list.filter()')
    assert browser.run("list.shown.length") == 1
    print(f"{len(html) / 1e6:.1f} MB, open in {took_s:.2f} s, searched in {time.monotonic() - began:.2f} s")


def test_what_both_said_stands_with_their_turns_and_leads_there(browser: Page, tmp_path: Path) -> None:
    words = [
        {"turn": 0, "who": "bot", "start_ms": 200, "text": "Hello! <img src=x onerror=alert(1)>"},
        {"turn": 2, "who": "caller", "start_ms": 11_000, "text": "A table for two."},
    ]
    calls = [
        make_call(tmp_path / "a.call", 25, report={"verdict": "passed", "words": words}),
        make_call(tmp_path / "b.call", 25),
    ]
    file = tmp_path / "call.html"
    file.write_text(render_page(calls), encoding="utf-8")
    browser.events.clear()
    browser.open(file)
    rows = (
        "[...document.querySelectorAll('#summary tbody tr')].map(row => row.innerText.trim().split(/\\s+/).join(' '))"
    )
    shown = browser.run(rows)
    assert shown[0] == "A bot Hello! <img src=x onerror=alert(1)>"
    assert [text.split()[0] for text in shown[1:3]] == ["1", "2"]
    assert shown[3:] == ["A caller A table for two."]
    browser.run("document.querySelectorAll('tr.words button')[1].click()")
    assert browser.run("player.time") == 11
    assert browser.faults() == []
