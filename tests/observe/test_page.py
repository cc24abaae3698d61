"""
The status page in a real browser.
"""

import json

import attrs
import pytest
import pytest_twisted
from twisted.application.service import MultiService

from connpool.services.access import ListenerStats
from tests.helpers.waiting import bounded, pause
from tests.observe.chromium import browser
from tests.observe.sample import HOSTILE, Source, busy, transfer
from tests.observe.web import serving

pytestmark = pytest.mark.peer("chromium")

#: Contrast of every text on the page with the ground it stands on (WCAG 2.2,
#: 1.4.3 and 1.4.11): the worst of small text, with its words.
CONTRAST = """
(() => {
  const channel = (byte) => {
    const c = byte / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  };
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !parent.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(parent).color)), light(ground(parent))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data];
  }
  return worst;
})()
"""

#: What a name would make if it were markup.
STRANGE = (
    "main img, main svg, main a, main script, main i:not([class]), main b[onclick], "
    "main [onclick], main [onmouseover], main [onerror]"
)

OPEN_ALL = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"

TEXT = "document.body.innerText"


async def opened(tab, web, path="/"):
    await tab.go(f"http://127.0.0.1:{web.port}{path}")
    await tab.waitFor("document.querySelectorAll('#groups li').length > 0")


@pytest_twisted.ensureDeferred
async def test_readableEverywhere(tmp_path):
    root, sources = busy()
    sources["transfer"].transfers += [transfer(50 + n, name) for n, name in enumerate(HOSTILE)]
    sources["transfer"].why = "the disk is full; " + "free some of its space " * 5
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        for width, height in ((1280, 900), (375, 812), (320, 600)):
            await tab.look(width, height, "light")
            await opened(tab, web)
            await tab.evaluate(OPEN_ALL)
            await tab.waitFor("document.querySelectorAll('details table tr').length > 50")
            wide = await tab.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{width}: scrolls sideways"
            small = await tab.evaluate(
                "Math.min(...[...document.querySelectorAll('main *')]"
                ".map((node) => parseFloat(getComputedStyle(node).fontSize)))"
            )
            assert small >= 13
            grounds = set()
            for scheme in ("light", "dark"):
                await tab.look(width, height, scheme)
                ratio, words = await tab.evaluate(CONTRAST)
                assert ratio >= 4.5, f"{width} {scheme}: {words!r} has contrast {ratio:.2f}"
                grounds.add(await tab.evaluate("getComputedStyle(document.body).backgroundColor"))
                if width != 375:
                    await tab.screenshot(str(tmp_path / f"{width}-{scheme}.png"))
            assert len(grounds) == 2
        assert tab.complaints == []


@pytest_twisted.ensureDeferred
async def test_namesArePlainText(tmp_path):
    root, sources = busy()
    # as they are, not as displayName() shows them: the page is the last line
    names = [*HOSTILE, "<svg/onload=alert(1)>", "<a href='javascript:alert(1)'>", "\u202etxt.exe"]
    live = [attrs.evolve(transfer(n, "x"), name=name) for n, name in enumerate(names)]
    sources["transfer"].transfers = [
        attrs.evolve(each, peer=each.name, slowedBy=each.name, protocol=each.name) for each in live
    ]
    sources["transfer"].why = "<img src=x onerror=alert(1)>"
    holder = MultiService()
    holder.setServiceParent(root)
    Source("listener", "<b onclick=alert(1)>", ListenerStats(1, 2, 3, 4)).setServiceParent(holder)
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)
        shown = await tab.evaluate(
            "[...document.querySelectorAll('#transferList bdi')].map((node) => node.textContent)"
        )
        assert shown == names
        strange = await tab.evaluate(f"document.querySelectorAll({STRANGE!r}).length")
        assert strange == 0
        assert await tab.evaluate("document.querySelectorAll('script').length") == 1
        assert "owned" not in await tab.evaluate("document.title")
        # a dialogue would hold this up
        assert await tab.evaluate("1 + 1") == 2
        assert tab.complaints == []


@pytest_twisted.ensureDeferred
async def test_thePolicyRunsNothingElse(tmp_path):
    root, _ = busy()
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)
        await tab.evaluate(
            "document.body.insertAdjacentHTML('beforeend',"
            "'<img src=x onerror=\"document.title=\\'owned\\'\"><style>body{display:none}</style>')"
        )
        await tab.evaluate(
            "const script = document.createElement('script');"
            "script.textContent = 'document.title = \"owned\"';"
            "document.body.append(script)"
        )
        await tab.waitFor("document.images.length > 0")
        assert "owned" not in await tab.evaluate("document.title")
        assert await tab.evaluate("getComputedStyle(document.body).display") != "none"
        assert any("Content Security Policy" in each for each in tab.complaints)


@pytest_twisted.ensureDeferred
async def test_itLives(tmp_path):
    root, sources = busy()
    source = sources["transfer"]
    source.transfers = [transfer(1, "big.bin", size=1000 << 20, done=0)]
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)
        assert await tab.evaluate("document.querySelector('progress').value") == 0
        await tab.evaluate("window.kept = document.querySelector('progress'); 1")
        source.transfers = [attrs.evolve(source.transfers[0], done=500 << 20, slowedBy="disk")]
        await tab.waitFor("document.querySelector('progress').value === 0.5")
        assert await tab.evaluate("window.kept === document.querySelector('progress')")
        text = await tab.waitFor(f"/left/.test({TEXT}) && {TEXT}")
        assert "500 MiB of 1,000 MiB" in text
        assert "50 %" in text
        assert "MiB/s" in text
        assert "waiting for the disk" in text
        source.transfers = []
        await tab.waitFor(f"/Nothing is on its way/.test({TEXT})")
        source.why = "the disk is full"
        await tab.waitFor(f"/not ready/.test({TEXT}) && /inbox: the disk is full/.test({TEXT})")
        source.why = None
        await tab.waitFor("document.getElementById('troubles').hidden")


@pytest_twisted.ensureDeferred
async def test_pauseAndResume(tmp_path):
    root, sources = busy()
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)
        await tab.evaluate("document.getElementById('pause').click()")
        assert await tab.evaluate("document.getElementById('ready').textContent") == "paused"
        sources["transfer"].transfers = []
        await pause(1.2)
        assert await tab.evaluate("document.querySelectorAll('progress').length") == 4
        await tab.evaluate("document.getElementById('pause').click()")
        await tab.waitFor("document.querySelectorAll('progress').length === 0")
        assert await tab.evaluate("document.getElementById('ready').textContent") == "ready"


@pytest_twisted.ensureDeferred
async def test_itSaysThatTheServiceIsGone(tmp_path):
    root, _ = busy()
    async with browser(tmp_path / "profile") as tab:
        async with serving(root) as web:
            await opened(tab, web)
            await bounded(root.stopService())
            await tab.waitFor(f"/not running/.test({TEXT})")
        await tab.waitFor("document.getElementById('ready').textContent === 'no connection'")
        assert await tab.evaluate("document.body.classList.contains('stale')")


@pytest_twisted.ensureDeferred
async def test_aScreenReaderMeetsEverything(tmp_path):
    root, _ = busy()
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)
        tree = await tab.accessibility()
        assert await tab.evaluate("document.documentElement.lang") == "en"
    roles = {role for role, _ in tree}
    assert {"banner", "main", "contentinfo", "heading", "progressbar", "table"} <= roles
    for role, name in tree:
        if role in {"progressbar", "button", "link", "heading", "image", "region"}:
            assert name, f"a {role} without a name"
    assert ("progressbar", "backups/2026-11-22.tar.zst: received") in tree
    assert ("image", "7 in use, 3 idle, 1 connecting or closing, of 20") in tree
    assert ("button", "Pause") in tree
    assert json.dumps(tree).count("heading") > 8
