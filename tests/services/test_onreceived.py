"""
C{--on-received}: every receipt is told at least once, whatever fails.
"""

import errno
import os
import sys
from itertools import pairwise

import pytest
from twisted.internet.defer import ensureDeferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from connpool.services import onreceived
from connpool.services.onreceived import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    PROGRAMS_AT_ONCE,
    OnReceived,
)
from connpool.transfer.stores.receiptcursor import ReceiptCursor
from connpool.transfer.stores.receiptlog import ReceiptLog
from connpool.transfer.syscalls import Syscalls
from tests.helpers.waiting import successResultOf
from tests.transfer.stores.kit import Recorded, followed, offer, receipt

DAY = 86400
NOON = 20_000 * DAY + DAY // 2


class Place:
    """
    A directory of receipts, three to a file, with those who write and read it.

    @ivar now: what its writers' clock says.
    """

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)
        self.path = path
        self.now = NOON
        self.syscalls = Recorded()
        self.log = ReceiptLog(
            self.syscalls,
            followed(self.syscalls, self.fd),
            lambda: self.now,
            lambda: self.now,
            size=1000,
        )
        self.outbox = None
        self.restart()
        self._made = 0

    def restart(self):
        if self.outbox is not None:
            self.outbox.close()
        self.outbox = ReceiptCursor(self.syscalls, followed(self.syscalls, self.fd))

    def receive(self, *names):
        for name in names:
            self._made += 1
            offered = offer(name, key=self._made.to_bytes(32, "big"))
            self.log.append([(offered, receiptOf(name))], sync=False)

    def left(self):
        """
        What the outbox still has, taken without being told.
        """
        taken = iter(self.outbox.take, None)
        return [receipt.name for _, receipt in taken]

    def tell(self):
        taken = self.outbox.take()
        self.outbox.told(taken[0])
        return taken[1].name

    def close(self):
        self.outbox.close()
        self.log.close()
        os.close(self.fd)


def receiptOf(name):
    return receipt(transferId="0" * 32, name=name, wanted=name)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "done").mkdir()
    place = Place(tmp_path / "done")
    yield place
    place.close()


class Process:
    """
    What a run believes to be its process.
    """

    def __init__(self):
        self.text = b""

    def write(self, data):
        self.text += data

    def closeStdin(self):
        pass

    def loseConnection(self):
        pass


class Machine(Clock):
    """
    A reactor whose processes are run by the test.

    @ivar broken: what the next forks fail with.
    @ivar tries: when a fork was tried.
    @ivar running: the runs that have not ended.
    @ivar told: names, in the order of the forks that succeeded.
    """

    def __init__(self):
        super().__init__()
        self.broken = None
        self.tries = []
        self.running = []
        self.told = []

    def spawnProcess(self, run, executable, args, env, path):
        self.tries.append(self.seconds())
        if self.broken is not None:
            raise self.broken
        process = Process()
        run.makeConnection(process)
        self.running.append(run)
        self.told.append(process.text.split(b'"name": "')[1].split(b'"')[0].decode())

    def end(self, said=b"", code=0):
        """
        The oldest one ends.
        """
        run = self.running.pop(0)
        if said:
            run.errReceived(said)
        why = Failure(ProcessTerminated(code) if code else ProcessDone(0))
        run.processExited(why)
        run.processEnded(why)
        self.advance(0)


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def hook(machine, place, tmp_path):
    (tmp_path / "program").touch(mode=0o755)
    return OnReceived(
        machine,
        str(tmp_path / "program"),
        str(tmp_path),
        place.outbox,
        lambda _: {"directory": str(tmp_path)},
    )


def runAll(machine):
    while machine.running:
        assert len(machine.running) <= PROGRAMS_AT_ONCE
        machine.end()


def warnings(logs):
    return [event for event in logs if event["log_level"].name == "warn"]


NAMES = [f"f{n}" for n in range(10)]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE, errno.ENOMEM])
def test_aForkThatFailsTellsNobody(machine, place, hook, number):
    place.receive(*NAMES)
    machine.broken = OSError(number, os.strerror(number))
    with capturedLogs() as logs:
        hook.look()
        for _ in range(2000):
            machine.advance(0.5)
            hook.published(receiptOf("x"))
    waits = [later - before for before, later in pairwise(machine.tries)]
    assert waits[:7] == [FIRST_WAIT_SECONDS * 2**n for n in range(6)] + [LONGEST_WAIT_SECONDS]
    assert set(waits[7:]) == {LONGEST_WAIT_SECONDS}
    (event,) = warnings(logs)
    assert os.strerror(number) in event["what"]
    machine.broken = None
    machine.advance(LONGEST_WAIT_SECONDS)
    runAll(machine)
    assert machine.told == NAMES
    place.restart()
    assert place.left() == []


def test_theWaitBeginsAnewAfterARunAndIsSaidAgain(machine, place, hook):
    place.receive("a", "b")
    with capturedLogs() as logs:
        for _ in range(2):
            machine.broken = BlockingIOError(errno.EAGAIN, "full")
            hook.look()
            machine.advance(FIRST_WAIT_SECONDS)
            machine.broken = None
            machine.advance(2 * FIRST_WAIT_SECONDS)
            runAll(machine)
            place.receive("c")
    assert machine.tries[1] - machine.tries[0] == FIRST_WAIT_SECONDS
    assert machine.told == ["a", "b", "c"]
    assert len(warnings(logs)) == 2


def test_oneRunsWhileAnotherCannotBegin(machine, place, hook):
    place.receive("a", "b", "c")
    spawn = machine.spawnProcess

    def onlyOne(*arguments, **keywords):
        machine.broken = BlockingIOError(errno.EAGAIN, "full") if machine.running else None
        spawn(*arguments, **keywords)

    machine.spawnProcess = onlyOne
    hook.look()
    assert machine.told == ["a"]
    while machine.running:
        machine.end()
        machine.advance(LONGEST_WAIT_SECONDS)
    assert machine.told == ["a", "b", "c"]


@pytest.mark.parametrize("broken", [OSError(errno.EMFILE, "Too many open files"), None])
def test_whatWaitsAtAStopIsToldAfterIt(machine, place, hook, broken):
    place.receive("a", "b", "c")
    machine.broken = broken
    hook.look()
    stopping = ensureDeferred(hook.stop())
    while machine.running:
        machine.end(code=9)
    successResultOf(stopping)
    assert not machine.getDelayedCalls()
    place.outbox = ReceiptCursor(place.syscalls, followed(place.syscalls, place.fd))
    assert place.left() == ["a", "b", "c"]


@pytest.mark.parametrize("change", [os.unlink, lambda path: os.chmod(path, 0o644)])
def test_aProgramThatIsGoneIsWaitedFor(machine, place, hook, tmp_path, change):
    place.receive(*NAMES)
    change(tmp_path / "program")
    with capturedLogs() as logs:
        hook.look()
        machine.pump([0.5] * 2000)
    (event,) = warnings(logs)
    assert "chmod" in event["what"]
    assert machine.told == []
    (tmp_path / "program").touch()
    (tmp_path / "program").chmod(0o755)
    machine.advance(LONGEST_WAIT_SECONDS)
    runAll(machine)
    assert machine.told == NAMES


def test_aChildThatCannotBecomeTheProgramTellsNobody(machine, place, hook):
    place.receive("a", "b", "c")
    with capturedLogs() as logs:
        hook.look()
        for wait in (1, 2, 4):
            assert machine.told[-2:] == ["a", "b"]
            for _ in range(2):
                machine.end(b"Upon execvpe /x ...\n:Traceback\nOSError: Text file busy\n", code=1)
            machine.advance(wait - 0.1)
            assert machine.running == []
            machine.advance(0.1)
    (event,) = warnings(logs)
    assert "cannot be run: OSError: Text file busy" in event["what"]
    del machine.told[:-2]
    runAll(machine)
    assert machine.told == ["a", "b", "c"]


def test_aProgramMaySayWhatItLikes(machine, place, hook):
    place.receive("a", "b", "c")
    hook.look()
    for _ in range(3):
        machine.end(b"Upon execvpe it all went well")
    assert machine.told == ["a", "b", "c"]
    assert not machine.running


def test_aProgramThatFailsWasTold(machine, place, hook):
    place.receive("a", "b", "c")
    with capturedLogs() as logs:
        hook.look()
        for _ in range(3):
            machine.end(b"no", code=3)
    assert len(warnings(logs)) == 3
    assert machine.told == ["a", "b", "c"]
    place.restart()
    assert place.left() == []


@pytest.mark.parametrize("call", ["open", "pread", "listdir"])
def test_aListThatCannotBeReadIsReadAgain(machine, place, hook, call):
    place.receive("a", "b", "c")

    def before(name, arguments, keywords):
        if name == call:
            raise OSError(errno.EIO, "Input/output error")

    with capturedLogs() as logs:
        place.syscalls.before = before
        hook.look()
        machine.pump([0.5] * 100)
        place.syscalls.before = None
    assert len(warnings(logs)) == 1
    machine.advance(LONGEST_WAIT_SECONDS)
    runAll(machine)
    assert machine.told == ["a", "b", "c"]


@pytest.mark.parametrize("heals", [True, False])
def test_whatCannotBeKeptEndsNothing(machine, place, hook, heals):
    place.receive(*NAMES)

    def before(name, arguments, keywords):
        if name == "pwrite":
            raise OSError(errno.EIO, "Input/output error")

    hook.look()
    place.syscalls.before = before
    with capturedLogs() as logs:
        runAll(machine)
    assert machine.told == NAMES
    assert len(warnings(logs)) == 1
    if heals:
        place.syscalls.before = None
    successResultOf(ensureDeferred(hook.stop()))
    place.syscalls.before = None
    place.outbox = ReceiptCursor(place.syscalls, followed(place.syscalls, place.fd))
    assert place.left() == ([] if heals else NAMES), "at least once"


def test_manyThatEndAtOnceAreNoRecursion(machine, place, hook):
    many = sys.getrecursionlimit() + 100
    place.receive(*(str(n) for n in range(many)))
    hook.look()
    runAll(machine)
    assert len(machine.told) == many


# -- the outbox


def test_aClockThatWasAheadHidesNothing(place):
    place.receive("a")
    place.now += 3 * DAY
    place.receive("ahead")
    assert [place.tell(), place.tell()] == ["a", "ahead"]
    place.now -= 3 * DAY
    place.receive("b")
    assert place.tell() == "b"
    place.receive("c")
    place.restart()
    assert place.left() == ["c"]
    place.now -= 2 * DAY
    place.receive("behind")
    place.restart()
    assert place.left() == ["c", "behind"]


def test_filesFollowEachOtherAndAreForgotten(place):
    for number in range(12):
        place.receive(f"{number} a", f"{number} b")
        assert [place.tell(), place.tell()] == [f"{number} a", f"{number} b"]
        place.receive(f"{number} c")
        place.restart()
        assert place.tell() == f"{number} c"
    assert len(place.outbox._at) == 12
    for path in place.path.glob("done-*"):
        os.utime(path, (0, 0))
    for _ in range(2):
        place.log.expire()
        place.now += 3600
    place.receive("more")
    assert place.tell() == "more"
    assert len(place.outbox._at) == 2
    place.restart()
    assert place.left() == []


def test_aFileThatBeginsAnewIsReadFromItsBeginning(place):
    """
    The power took more of it than of what was told.
    """
    place.receive("a", "b")
    assert [place.tell() for _ in range(2)] == ["a", "b"]
    os.truncate(place.path / "done-1", 0)
    place.receive("d")
    assert place.left() == ["d"]


def test_whatIsToldOutOfOrder(place):
    place.receive("a", "b", "c", "d", "e")
    positions = [place.outbox.take()[0] for _ in range(4)]
    for number in (3, 1, 2):
        place.outbox.told(positions[number])
    place.restart()
    assert place.left() == ["a", "b", "c", "e"]


def test_onlyWhatComesLaterIsNew(tmp_path):
    (tmp_path / "done").mkdir()
    fd = os.open(tmp_path / "done", os.O_RDONLY)
    log = ReceiptLog(Recorded(), followed(Syscalls(), fd), lambda: NOON)
    log.append([(offer("old", key=bytes(32)), receiptOf("old"))], sync=False)
    log.close()
    os.close(fd)
    place = Place(tmp_path / "done")
    place.receive("new")
    assert place.left() == ["new"]
    place.close()


@pytest.mark.parametrize("text", [b"\0" * 42, b"x", b"\n", b"1 2\n"])
def test_whatWasToldIsToldAgainIfNobodyKnows(place, text):
    place.receive("a")
    place.tell()
    place.outbox.close()
    (place.path / "hook").write_bytes(text)
    place.outbox = ReceiptCursor(place.syscalls, followed(place.syscalls, place.fd))
    assert place.left() == ["a"]


def test_itsBeginningSurvivesThePower(place):
    synced = [arguments[0] for name, arguments, *_ in place.syscalls.log if name == "fsync"]
    assert place.outbox._fd in synced
    assert place.fd in synced


def test_theModuleSaysHowLong():
    assert (onreceived.TIME_LIMIT_SECONDS, FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS) == (
        60.0,
        1.0,
        60.0,
    )
