"""
The status page in a real browser.
"""

import json

import attrs
import pytest
import pytest_twisted
from twisted.application.service import MultiService

from connpool.observe import readSources
from connpool.observe.history import History
from connpool.services.access import ListenerStats
from tests.helpers.waiting import bounded, pause
from tests.observe.chromium import browser
from tests.observe.sample import HOSTILE, Source, busy, ended, transfer
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
    sources["transfer"].recent = [
        ended(n, name, peer=name, result=result, why=name, durability=name, transferId=name)
        for result in ("stored", "refused")
        for n, name in enumerate(reversed(names))
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
        for listed in ("fileList", "refusalList"):
            shown = await tab.evaluate(
                f"[...document.querySelectorAll('#{listed} bdi')].map((node) => node.textContent)"
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
async def test_cardsTellAddressStateLossAndRoundTrip(tmp_path):
    root, sources = busy()
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)

        async def card(group):
            text = await tab.evaluate(f"document.querySelector('#group-{group} + ul li').innerText")
            return list(filter(None, text.split("\n")))

        assert "192.0.2.1:8640" in await card("listener")
        # it is where its listener is
        assert (await card("transfer"))[:3] == ["inbox", "up", "192.0.2.1:8640"]
        probe = await card("probe")
        assert probe[:2] == ["far.example:8641", "up"]
        figures = dict(zip(probe[2:-1:2], probe[3:-1:2], strict=False))
        assert (figures["Loss"], figures["Round trip"]) == ("1 %", "20 ms")
        sources["transfer"].why = "the disk is full"
        dead = attrs.evolve(sources["probe"].snapshot, up=False, rttMean=0.0, lost=200)
        sources["probe"].snapshot = dead
        await tab.waitFor("/the disk is full/.test(document.getElementById('groups').innerText)")
        assert (await card("transfer"))[1] == "down"
        probe = await card("probe")
        assert probe[1] == "down"
        figures = dict(zip(probe[2:-1:2], probe[3:-1:2], strict=False))
        assert figures["Round trip"] == "–"


@pytest_twisted.ensureDeferred
async def test_theLastFilesAndRefusals(tmp_path):
    root, sources = busy()
    async with serving(root) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)
        rows = "[...document.querySelectorAll('#%s tr')].map((row) => row.innerText)"
        files = await tab.evaluate(rows % "fileList")
        assert [row.split("\t")[1:4] for row in files] == [
            ["reports/2026-11.csv", "1 MiB", "192.0.2.7"],
            ["half.bin", "1 MiB", "192.0.2.7"],
            ["again.txt", "1 MiB", "192.0.2.7"],
        ]
        assert files[0].split("\t")[4:] == ["stored", "full", f"{3:032x}"]
        assert "no-space: the disk is full" in files[1]
        (refused,) = await tab.evaluate(rows % "refusalList")
        assert refused.split("\t")[1:] == [
            *("../../etc/passwd", "192.0.2.7", "name-refused: send a relative name"),
        ]
        sources["transfer"].recent.insert(0, ended(9, "new.txt"))
        await tab.waitFor("/new.txt/.test(document.getElementById('fileList').innerText)")


@pytest_twisted.ensureDeferred
async def test_curvesOfTenMinutes(tmp_path):
    root, _ = busy()
    history = History()
    for turn in range(3):
        history.add(5.0 * turn, readSources([root]))
    async with serving(root, history=history) as web, browser(tmp_path / "profile") as tab:
        await opened(tab, web)
        titles = "[...document.querySelectorAll('.curve h3')].map((node) => node.textContent)"
        assert await tab.evaluate(titles) == ["Bytes", "Files", "Slowest round trip", "Waiting"]
        texts = "[...document.querySelectorAll('.curve b')].map((node) => node.textContent)"
        assert await tab.evaluate(texts) == ["0 B/s", "0/s", "20 ms", "2"]
        lines = "[...document.querySelectorAll('.curve .line')].map((p) => p.getAttribute('d'))"
        for path in await tab.evaluate(lines):
            # three points, at the right
            assert path.count("M") == 1
            assert path.count("L") == 2
            assert "NaN" not in path
            assert "L120.00 " in path
        for _ in range(3):
            history.add(100.0, [])
        await tab.waitFor(f"{texts}.join() === '–,–,–,–'")
        assert tab.complaints == []


KINDS = ["datagram", "listener", "tcp", "transfer", "pool", "probe"]


@pytest_twisted.ensureDeferred
async def test_noEmptyHalves(tmp_path):
    """
    Cards reach from edge to edge, however many there are.
    """
    async with browser(tmp_path / "profile") as tab:
        for count in (1, 2, 3, 6):
            _, sources = busy()
            root = MultiService()
            for kind in KINDS[:count]:
                sources[kind].disownServiceParent()
                holder = MultiService()
                holder.setServiceParent(root)
                sources[kind].setServiceParent(holder)
            async with serving(root) as web:
                await tab.look(1280, 900, "light")
                await opened(tab, web)
                edges = await tab.evaluate(
                    "[...document.querySelectorAll('#groups .card')].map((card) => "
                    "card.getBoundingClientRect()).map((b) => [b.left, b.right, b.bottom])"
                )
                wide = await tab.evaluate(
                    "(() => { const b = document.getElementById('groups').getBoundingClientRect();"
                    " return [b.left, b.right]; })()"
                )
                assert len(edges) == count
                assert min(left for left, _, _ in edges) == pytest.approx(wide[0], abs=1)
                assert max(right for _, right, _ in edges) == pytest.approx(wide[1], abs=1)
                ends = {}
                for left, _, bottom in edges:
                    ends[round(left)] = max(ends.get(round(left), 0), bottom)
                assert len(ends) == min(count, 3)


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
