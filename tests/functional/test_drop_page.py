"""
The page for people in Chromium, at a real receiver.
"""

import os
from contextlib import asynccontextmanager, contextmanager

import pytest
import pytest_twisted

from tests.helpers.ports import freePort
from tests.helpers.processes import twistd, within
from tests.helpers.trees import filesBelow, publishedBelow
from tests.helpers.waiting import until
from tests.observe.chromium import browser

pytestmark = pytest.mark.peer("chromium")

OVER = "tally.waiting + tally.sending === 0 && rows.length"
STATES = "rows.map(row => [row.path, row.state, row.said])"
HOSTILE = ["<img src=x onerror=alert(1)>", "a b ü %2e #?&.txt"]


class Receiver:
    """
    A receiver that can be killed, and started again at its port.
    """

    def __init__(self, directory, *options):
        self.directory = directory
        self.files = directory / "received"
        self.port = freePort()
        self._options = options

    @contextmanager
    def running(self):
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        options = ("--listen", listen, "--names", "posix", *self._options)
        with twistd("filerecv", *options, cwd=self.directory) as program:
            program.waitFor("listens on ")
            yield program
            assert "Traceback" not in program.output

    def url(self, host="127.0.0.1"):
        return f"http://{host}:{self.port}/"

    def stored(self):
        """
        @return: path to content of the published files.
        """
        return publishedBelow(self.files)


@pytest.fixture
def receiver(tmp_path):
    return Receiver(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """
    A folder with files whose names are hostile, an empty one, and one of several requests.
    """
    made = tmp_path / "folder"
    (made / "sub").mkdir(parents=True)
    for name in HOSTILE:
        (made / name).write_text(name)
    (made / "sub/empty").touch()
    (made / "sub/large").write_bytes(os.urandom(3 << 20))
    return made


def contents(folder):
    return {
        str(path.relative_to(folder.parent)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@asynccontextmanager
async def window(tmp_path, *flags, width=1280, scheme="light"):
    profile = tmp_path / "profile"
    profile.mkdir()
    async with browser(profile, *flags) as chromium:
        await chromium.look(width, 900, scheme)
        yield chromium


async def visit(chromium, url):
    await chromium.go(url)
    await chromium.waitFor("document.readyState === 'complete' && typeof rows === 'object'")


@asynccontextmanager
async def page(receiver, tmp_path):
    """
    A running receiver, and its page in a window.
    """
    with receiver.running():
        async with window(tmp_path) as chromium:
            await visit(chromium, receiver.url())
            yield chromium


def ownComplaints(chromium):
    """
    @return: what the page did wrong.  Chromium itself says that a request failed, and that a
        page that nobody touched does not ask before it is left.
    """
    others = ("Failed to load resource", "Blocked attempt to show a 'beforeunload'")
    return [each for each in chromium.complaints if not each.startswith(others)]


async def over(chromium, seconds=60):
    """
    @return: path, state and text of each file when nothing is under way any more.
    """
    try:
        await chromium.waitFor(OVER, seconds)
    except AssertionError:
        states = await chromium.evaluate(STATES)
        trouble = await chromium.evaluate("$('trouble').textContent")
        raise AssertionError(f"{states}, {trouble}, {chromium.complaints}") from None
    return await chromium.evaluate(STATES)


async def allSent(chromium, seconds=60):
    states = await over(chromium, seconds)
    assert {state for _, state, _ in states} == {"done"}, states
    return states


@pytest_twisted.ensureDeferred
async def test_filesAndFolders(receiver, folder, tmp_path):
    with receiver.running() as program:
        async with window(tmp_path, width=390, scheme="dark") as chromium:
            await visit(chromium, receiver.url())
            await chromium.choose("#files", folder / HOSTILE[0], folder / "sub/empty")
            await chromium.choose("#folder", folder)
            # the browser reads a folder after it has answered: the two files may be over first
            await chromium.waitFor("rows.length === 6")
            states = await allSent(chromium)
            assert all(said == "Sent, verified" for path, _, said in states if "empty" not in path)
            await chromium.waitFor("document.title === 'All sent'")
            shown = await chromium.evaluate(
                "[...document.querySelectorAll('.name')].map(each => each.textContent)"
            )
            assert shown == [path for path, _, _ in states]
            assert await chromium.evaluate("document.querySelectorAll('img').length") == 0
            wide = await chromium.evaluate("document.documentElement.scrollWidth")
            assert wide == 390
            assert await chromium.evaluate("localStorage.length") <= 1
            assert await chromium.evaluate("readKept().size") == 0
            assert chromium.complaints == []
        expected = contents(folder)
        expected |= {HOSTILE[0]: HOSTILE[0].encode(), "empty": b""}
        assert receiver.stored() == expected
        assert within(lambda: program.output.count("received ") == len(expected))


@pytest_twisted.ensureDeferred
async def test_refusedFilesStay(receiver, folder, tmp_path):
    receiver = Receiver(tmp_path, "--max-file-size", "1M", "--if-exists", "refuse")
    async with page(receiver, tmp_path) as chromium:
        await chromium.choose("#folder", folder)
        states = await over(chromium)
        [(path, said)] = [(path, said) for path, state, said in states if state == "failed"]
        assert path == "folder/sub/large"
        assert "1048576" in said
        await chromium.waitFor("document.title === '(1 failed) Finished'")
        await chromium.waitFor("$('live').textContent.includes('1 failed')")
        # a name that is taken by something else
        (folder / "sub/empty").write_text("no longer")
        await chromium.choose("#files")
        await chromium.choose("#folder", folder)
        await chromium.waitFor(f"rows.length > {len(states)} && {OVER}", 60)
        again = [each for each in await chromium.evaluate(STATES) if each[1] == "failed"]
        assert [path for path, _, _ in again] == ["folder/sub/large", "folder/sub/empty"]
        await chromium.waitFor("document.title === '(2 failed) Finished'")
        names = [name for _, name in await chromium.accessibility()]
        assert "Try again folder/sub/large" in names
        assert ownComplaints(chromium) == []
        assert receiver.stored()["folder/sub/empty"] == b""


@pytest_twisted.ensureDeferred
async def test_aPasswordIsAskedFor(receiver, folder, tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text("alice:right horse\n")
    passwords.chmod(0o600)
    receiver = Receiver(tmp_path, "--auth", f"file:{passwords}")
    async with page(receiver, tmp_path) as chromium:
        await chromium.choose("#folder", folder)
        for password in ("wrong", "right horse"):
            await chromium.waitFor("!$('sign').hidden")
            await chromium.evaluate(
                "document.forms[1].name.value = 'alice';"
                f"document.forms[1].password.value = '{password}';"
                "document.forms[1].requestSubmit()"
            )
        await allSent(chromium)
        assert ownComplaints(chromium) == []
        assert receiver.stored() == contents(folder)


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_aRefusedNameCanBeRead(receiver, tmp_path):
    # seen as exe.png, and as one line, if they are shown as they are
    names = ["\u202egnp.exe", "two\nlines"]
    for name in names:
        (tmp_path / name).write_text(name)
    with receiver.running():
        async with window(tmp_path, width=390) as chromium:
            await visit(chromium, receiver.url())
            # as whoever wants larger letters has it
            await chromium.evaluate("document.documentElement.style.fontSize = '20px'")
            await chromium.choose("#files", *(tmp_path / name for name in names))
            states = await over(chromium)
            assert {state for _, state, _ in states} == {"failed"}
            texts = "[...document.querySelectorAll('%s')].map(each => each.textContent)"
            await chromium.waitFor("document.querySelectorAll('.row.failed').length === 2")
            assert await chromium.evaluate(texts % ".name") == ["\\u202egnp.exe", "two\\u000alines"]
            reasons = await chromium.evaluate(texts % ".row .state")
            assert all(each.startswith("Name refused: it contains") for each in reasons)
            states = "[...document.querySelectorAll('.state')]"
            cut = f"{states}.filter(e => e.scrollHeight > e.clientHeight).map(e => e.textContent)"
            assert await chromium.evaluate(cut) == []
            # neither row covers the other
            first, second = await chromium.evaluate(
                "[...document.querySelectorAll('.row')].map(each => each.getBoundingClientRect())"
                ".map(each => [each.top, each.bottom])"
            )
            assert first[1] <= second[0] + 1
            assert ownComplaints(chromium) == []
        assert receiver.stored() == {}


#: Counts what is sent again.
COUNT = """
window.patched = 0;
window.reallyFetch = window.fetch;
window.fetch = (url, request) => {
  if (request.method === "PATCH") patched += request.body.byteLength;
  return reallyFetch(url, request);
};
"""
HUGE_BYTES = 60 << 20


@pytest.fixture
def huge(tmp_path):
    made = tmp_path / "huge.bin"
    made.write_bytes(os.urandom(HUGE_BYTES))
    return made


async def slowly(chromium, rate=20e6, offline=False):
    """
    Let the browser's network carry that many bytes/s.
    """
    await chromium.command("Network.enable", maxPostDataSize=1, maxTotalBufferSize=1 << 20)
    await chromium.command(
        "Network.emulateNetworkConditions",
        offline=offline,
        latency=0,
        downloadThroughput=-1,
        uploadThroughput=rate,
    )


async def begun(chromium, receiver, huge):
    """
    Begin to send a file over a slow network.

    @return: bytes of it that the receiver has when some are under way.
    """
    await visit(chromium, receiver.url())
    await slowly(chromium)
    await chromium.choose("#files", huge)
    await chromium.waitFor("rows[0].sent > 5e6", 60)
    return await chromium.evaluate("rows[0].sent")


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_theReceiverIsKilled(receiver, huge, tmp_path):
    async with window(tmp_path) as chromium:
        with receiver.running() as program:
            before = await begun(chromium, receiver, huge)
            program.process.kill()
            await chromium.waitFor("!$('trouble').hidden")
            assert "does not answer" in await chromium.evaluate("$('trouble').textContent")
        await chromium.evaluate(COUNT)
        with receiver.running():
            await chromium.evaluate("tryNow()")
            await allSent(chromium)
        assert await chromium.evaluate("patched") <= HUGE_BYTES - before
        assert receiver.stored() == {"huge.bin": huge.read_bytes()}
        assert ownComplaints(chromium) == []


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_thePageIsLoadedAnew(receiver, huge, tmp_path):
    async with page(receiver, tmp_path) as chromium:
        assert await chromium.evaluate("$('earlier').hidden")
        before = await begun(chromium, receiver, huge)
        await visit(chromium, receiver.url())
        assert await chromium.evaluate("rows.length") == 0
        assert "huge.bin" in await chromium.evaluate("$('earlier').innerText")
        await slowly(chromium, -1)
        await chromium.evaluate(COUNT)
        await chromium.drop(huge)
        await allSent(chromium)
        assert await chromium.evaluate("patched") <= HUGE_BYTES - before
        assert await chromium.evaluate("readKept().size") == 0
        assert ownComplaints(chromium) == []
        assert receiver.stored() == {"huge.bin": huge.read_bytes()}


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_whatWasBegunIsForgotten(receiver, huge, tmp_path):
    with receiver.running():
        async with window(tmp_path) as chromium:
            await begun(chromium, receiver, huge)
            await visit(chromium, receiver.url())
            other = """keep('["other.bin",5,1]', HERE + '.connpool/u/x'); drawEarlier()"""
            await chromium.evaluate(other)
            # one that has changed since is let go of alone
            label = "button[aria-label='Forget huge.bin']"
            await chromium.evaluate(f'$("earlier").querySelector("{label}").click()')
            left = "[...document.querySelectorAll('#earlier li')].map(each => each.innerText)"
            [item] = await chromium.evaluate(left)
            assert item.startswith("other.bin")
            await chromium.evaluate("$('earlier').querySelector('.head button').click()")
            await chromium.waitFor("$('earlier').hidden")
            partials = receiver.files / ".connpool/partials"
            await until(lambda: not filesBelow(partials))
        assert receiver.stored() == {}


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_offline(receiver, huge, tmp_path):
    with receiver.running():
        async with window(tmp_path) as chromium:
            before = await begun(chromium, receiver, huge)
            await slowly(chromium, offline=True)
            # a request may fail a moment before the page hears that the network is gone
            await chromium.waitFor("$('trouble').textContent.includes('You are offline')")
            await chromium.evaluate(COUNT)
            await slowly(chromium, -1)
            await allSent(chromium)
            # what was under way when the network went is sent again
            assert await chromium.evaluate("patched") <= HUGE_BYTES - before
            assert ownComplaints(chromium) == []
        assert receiver.stored() == {"huge.bin": huge.read_bytes()}


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_twoTabs(receiver, huge, tmp_path):
    with receiver.running() as program:
        async with window(tmp_path) as chromium:
            before = await begun(chromium, receiver, huge)
            first = chromium.tab
            await chromium.begin()
            await visit(chromium, receiver.url())
            await chromium.evaluate(COUNT)
            await chromium.choose("#files", huge)
            await allSent(chromium)
            assert await chromium.evaluate("patched") <= HUGE_BYTES - before
            chromium.tab = first
            said = await chromium.waitFor("rows[0].state === 'failed' && rows[0].said")
            assert said == "Another tab or window goes on with this file"
        assert receiver.stored() == {"huge.bin": huge.read_bytes()}
        assert within(lambda: program.output.count("received ") == 1)


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_aFolderOfAThousandIsDropped(receiver, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1000):
        (folder / f"{number:04}").write_bytes(os.urandom(4096))
    async with page(receiver, tmp_path) as chromium:
        await chromium.drop(folder)
        await chromium.waitFor("rows.length === 1000", 60)
        # only those in sight are there
        assert await chromium.evaluate("document.querySelectorAll('.row').length") < 30
        await allSent(chromium, 120)
        await chromium.evaluate("$('rows').scrollTop = 1e9")
        last = "[...document.querySelectorAll('.row')].some(e => e.ariaPosInSet === '1000')"
        await chromium.waitFor(last)
        assert chromium.complaints == []
        assert receiver.stored() == contents(folder)


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_plainHTTPFromElsewhere(folder, tmp_path):
    # no WebCrypto there: the page hashes itself
    host = "files.example"
    receiver = Receiver(tmp_path, "--web-host", host)
    with receiver.running():
        flag = f"--host-resolver-rules=MAP {host} 127.0.0.1"
        async with window(tmp_path, flag) as chromium:
            await visit(chromium, receiver.url(host))
            assert not await chromium.evaluate("isSecureContext")
            await chromium.choose("#folder", folder)
            states = await allSent(chromium)
            assert all(said == "Sent, verified" for path, _, said in states if "empty" not in path)
            assert chromium.complaints == []
        assert receiver.stored() == contents(folder)


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_noWorkerBegins(receiver, huge, tmp_path):
    async with page(receiver, tmp_path) as chromium:
        # the first piece waits for an answer that never comes
        await chromium.evaluate("worker.terminate()")
        await chromium.choose("#files", huge)
        await chromium.waitFor("asked.size === 1")
        await chromium.evaluate("worker.onerror()")
        states = await allSent(chromium)
        assert [said for _, _, said in states] == ["Sent, verified"]
        assert chromium.complaints == []
        assert receiver.stored() == {"huge.bin": huge.read_bytes()}


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_ourOwnSHA256(receiver, tmp_path):
    lengths = [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_000]
    async with page(receiver, tmp_path) as chromium:
        await chromium.evaluate(f"window.lengths = {lengths}")
        # with a global object that has no WebCrypto
        source = await chromium.evaluate("String(hashing)")
        await chromium.evaluate(f"window.ours = (self => ({source})())({{}})")
        differing = await chromium.evaluate(
            """(async () => {
              const found = [];
              for (const length of lengths) {
                const data = Uint8Array.from({length}, (_, i) => i * 7 + (i >> 8));
                const theirs = await crypto.subtle.digest("SHA-256", data);
                const [digest] = await ours(new Blob([data]));
                const hex = bytes => [...new Uint8Array(bytes)].join();
                if (hex(digest) !== hex(theirs)) found.push(length);
              }
              return found;
            })()"""
        )
        assert differing == []


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_withoutAScript(receiver, folder, tmp_path):
    with receiver.running():
        async with window(tmp_path) as chromium:
            await chromium.command("Emulation.setScriptExecutionDisabled", value=True)
            await chromium.go(receiver.url())
            await chromium.choose("#files", folder / HOSTILE[0], folder / HOSTILE[1])
            await chromium.click("#submit")
            # the title is there before the list
            await chromium.waitFor(
                "document.title === 'Received' && document.readyState === 'complete'"
            )
            listed = await chromium.evaluate(
                "[...document.querySelectorAll('li')].map(each => each.textContent)"
            )
            assert sorted(listed) == sorted(f"{name}: stored" for name in HOSTILE)
            assert chromium.complaints == []
        assert receiver.stored() == {name: name.encode() for name in HOSTILE}


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_aPhone(receiver, folder, tmp_path):
    with receiver.running():
        async with window(tmp_path, width=390) as chromium:
            await chromium.command("Emulation.setTouchEmulationEnabled", enabled=True)
            await visit(chromium, receiver.url())
            assert "A phone may convert a video" in await chromium.evaluate("$('hint').innerText")
            await chromium.choose("#files", *(path for path in folder.iterdir() if path.is_file()))
            await allSent(chromium)
            small = await chromium.evaluate(
                "[...document.querySelectorAll('button, .button')].filter(each =>"
                " each.offsetHeight && each.offsetHeight < 44).map(each => each.textContent)"
            )
            assert small == []
        assert set(receiver.stored()) == set(HOSTILE)
