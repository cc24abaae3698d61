"""
A connection driven through its life, each state seen by its name; the parser,
the counts and the command.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

import psutil
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.endpoints import connectProtocol, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from connpool.commands import main
from connpool.errors import StatesUnavailable
from connpool.interfaces import IStatsSource
from connpool.observe.tcpstates import (
    Socket,
    State,
    StateCounts,
    countStates,
    fromPsutil,
    parseProcTable,
    socketsOf,
)
from connpool.observe.tcpstates_read import (
    PROC,
    TCPInfo,
    TCPStates,
    findProcesses,
    portsOf,
    readSockets,
    tcpInfo,
)
from tests.helpers.processes import CHECKOUT, connpool, environment
from tests.helpers.waiting import bounded, until

needsProc = pytest.mark.skipif(not PROC.exists(), reason="no /proc here")

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:21C0 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 1225
   1: 0100007F:21C0 0200007F:AC48 01 0000000A:00000014 00:00000000 00000000     0        0 1
   2: 0200007F:AC48 0100007F:21C0 08 00000000:00000002 00:00000000 00000000     0        0 1
   3: 0100007F:0016 0200007F:0001 0C 00000000:00000000 00:00000000 00000000     0        0 1
   4: garbage
   5: 0100007F:0016 0200007F:0001 63 00000000:00000000 00:00000000 00000000     0        0 1
   6: 0100007F:0016 0200007F:0001 01
"""

TABLE6 = """\
sl local_address remote_address st tx_queue rx_queue
0: 00000000000000000000000001000000:21C0 00000000000000000000000000000000:0000 0A 00:00 0
1: 0000000000000000FFFF00000100007F:21C0 B80D0120000000000000000007000000:0001 06 00000000:00000000
"""


@pytest.mark.skipif(sys.byteorder == "big", reason="the rows are little-endian")
def test_parse():
    assert list(parseProcTable(TABLE.splitlines())) == [
        Socket(State.LISTEN, "127.0.0.1", 8640, "0.0.0.0", 0, 0, 3, 1225),
        Socket(State.ESTABLISHED, "127.0.0.1", 8640, "127.0.0.2", 44104, 10, 20, 1),
        # the FIN in its queue is not a byte to read
        Socket(State.CLOSE_WAIT, "127.0.0.2", 44104, "127.0.0.1", 8640, 0, 1, 1),
        Socket(State.SYN_RECV, "127.0.0.1", 22, "127.0.0.2", 1, 0, 0, 1),
    ]
    others = parseProcTable(TABLE.splitlines(), {22, 44104})
    assert [each.localPort for each in others] == [44104, 22]
    listening, over = parseProcTable(TABLE6.splitlines())
    assert (listening.local, listening.state) == ("[::1]:8640", State.LISTEN)
    assert (over.local, over.remote) == ("127.0.0.1:8640", "[2001:db8::7]:1")


@given(st.text(max_size=200), st.text("0123456789ABCDEF: \n", max_size=200))
def test_anyTable(text, almost):
    for each in parseProcTable(f"head\n{text}\n 1: {almost}".splitlines()):
        assert isinstance(each, Socket)


@pytest.mark.skipif(sys.byteorder == "big", reason="the rows are little-endian")
def test_counts():
    sockets = list(parseProcTable(TABLE.splitlines()))
    here, there = socketsOf(sockets, {8640})
    assert countStates(here) == StateCounts(
        listen=1, established=1, sendQueueBytes=10, receiveQueueBytes=20, acceptQueue=3
    )
    assert countStates(there) == StateCounts(closeWait=1, receiveQueueBytes=1)
    assert countStates(sockets).of(State.SYN_RECV) == 1
    assert countStates([Socket(State.CLOSE, "", 0, "", 0)]) == StateCounts()
    assert StateCounts().of(State.CLOSE) == 0


def test_everyStateIsExplainedAndCounted():
    for state in State:
        assert state.meaning
        if state is not State.CLOSE:
            counts = countStates([Socket(state, "", 0, "", 0)])
            assert counts.of(state) == 1
    assert {"established", "acceptQueue"} <= StateCounts.GAUGES


class Connection(NamedTuple):
    status: str
    laddr: tuple
    raddr: tuple


def test_psutilHasNoQueues():
    found = list(
        fromPsutil(
            [
                Connection("ESTABLISHED", ("127.0.0.1", 1), ("127.0.0.1", 2)),
                Connection("SYN_RECV", ("::1", 1), ("::1", 2)),
                Connection("LISTEN", ("127.0.0.1", 1), ()),
                Connection("NONE", ("127.0.0.1", 1), ()),
            ]
        )
    )
    assert found == [
        Socket(State.ESTABLISHED, "127.0.0.1", 1, "127.0.0.1", 2),
        Socket(State.SYN_RECV, "::1", 1, "::1", 2),
        Socket(State.LISTEN, "127.0.0.1", 1, "", 0),
    ]
    assert found[0].sendQueue is None


@pytest.mark.parametrize("denied", [False, True])
def test_withoutProc(tmp_path, monkeypatch, denied):
    if denied:

        def refuse(kind):
            raise psutil.AccessDenied

        monkeypatch.setattr(psutil, "net_connections", refuse)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        here, _ = socketsOf(readSockets(proc=tmp_path), {port})
    assert [each.state for each in here] == [State.LISTEN]


# -- a connection's life, on real sockets


class Pair:
    """
    A listening socket and one connection to it.
    """

    def __init__(self, stack):
        self.listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=8))
        self.port = self.listening.getsockname()[1]
        self.client = stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
        self.server = stack.enter_context(self.listening.accept()[0])
        self._ports = (self.port, self.client.getsockname()[1])

    def states(self):
        """
        The state of the server's and the client's side; L{None} if gone.
        """
        found = {}
        for each in readSockets():
            if (each.localPort, each.remotePort) in {self._ports, self._ports[::-1]}:
                found[each.localPort] = each
        return tuple(found[port].state if port in found else None for port in self._ports)

    def become(self, server, client):
        """
        The kernel moves packets by itself; on loopback this is at once.
        """
        end = time.monotonic() + 10
        while self.states() != (server, client):
            assert time.monotonic() < end, self.states()
            time.sleep(0.01)

    def queues(self):
        found = {each.localPort: each for each in readSockets() if each.remotePort in self._ports}
        return {port: (each.sendQueue, each.receiveQueue) for port, each in found.items()}

    def fill(self, sender):
        """
        Send until the other side's window is full.
        """
        sender.setblocking(False)
        for _ in range(100_000):
            try:
                sender.send(bytes(65536))
            except BlockingIOError:
                return
        raise AssertionError("never full")


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(stack):
    return Pair(stack)


ESTABLISHED = State.ESTABLISHED


@needsProc
def test_openAndClosedByTheClient(pair):
    pair.become(ESTABLISHED, ESTABLISHED)
    pair.client.shutdown(socket.SHUT_WR)
    pair.become(State.CLOSE_WAIT, State.FIN_WAIT2)
    # half-closed: the server may still send
    pair.server.sendall(b"last words")
    assert pair.client.recv(100) == b"last words"
    pair.server.close()
    # who closes first keeps the ports
    pair.become(None, State.TIME_WAIT)


@needsProc
def test_closedByTheServer(pair):
    pair.server.shutdown(socket.SHUT_WR)
    pair.become(State.FIN_WAIT2, State.CLOSE_WAIT)
    pair.client.close()
    pair.become(State.TIME_WAIT, None)


@needsProc
def test_aFullWindow(pair):
    """
    Back-pressure: what the reader does not read, the sender keeps.
    """
    pair.fill(pair.server)
    client = pair.client.getsockname()[1]
    for _ in range(100):
        queues = pair.queues()
        _, there = socketsOf(readSockets(), {pair.port})
        received = countStates(there).receiveQueueBytes
        if received == queues[client][1]:
            break
        time.sleep(0.01)  # the kernel moves the last segments between two looks
    assert received == queues[client][1] > 0
    assert queues[pair.port][0] > 0


@needsProc
def test_closedBehindAFullWindow(pair):
    """
    The FIN waits behind the data: FIN_WAIT1, and LAST_ACK on the other way.
    """
    pair.fill(pair.server)
    pair.server.shutdown(socket.SHUT_WR)
    pair.become(State.FIN_WAIT1, ESTABLISHED)
    # and now the client closes too: both closed at once
    pair.client.shutdown(socket.SHUT_WR)
    pair.become(State.CLOSING, State.FIN_WAIT2)
    pair.client.setblocking(True)
    while pair.client.recv(1 << 20):
        pass
    pair.become(State.TIME_WAIT, State.TIME_WAIT)


@needsProc
def test_lastAck(pair):
    pair.fill(pair.server)
    pair.client.shutdown(socket.SHUT_WR)
    pair.become(State.CLOSE_WAIT, State.FIN_WAIT2)
    pair.server.shutdown(socket.SHUT_WR)
    pair.become(State.LAST_ACK, State.FIN_WAIT2)
    while pair.client.recv(1 << 20):
        pass
    pair.become(None, State.TIME_WAIT)


@needsProc
def test_reset(pair):
    """
    A reset leaves nothing behind.
    """
    import struct

    pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.server.close()
    pair.become(None, None)


@needsProc
@pytest.mark.skipif(sys.platform != "linux", reason="TCP_DEFER_ACCEPT")
def test_handshake(stack):
    """
    SYN_RECV: the listener waits for data before it takes the last step.
    """
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    port = listening.getsockname()[1]
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    ours = client.getsockname()[1]
    here, there = socketsOf(readSockets(), {port})
    # others may have used this port a moment ago, and left TIME_WAIT
    states = {each.state for each in here if each.remotePort in {0, ours}}
    assert states == {State.LISTEN, State.SYN_RECV}
    assert [each.state for each in there if each.localPort == ours] == [ESTABLISHED]


@needsProc
def test_aFullAcceptQueue(stack):
    """
    Its depth is seen, and who comes then gets no answer: SYN_SENT.
    """
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
    address = listening.getsockname()
    for _ in range(2):
        stack.enter_context(socket.create_connection(address))
    waiting = stack.enter_context(socket.socket())
    waiting.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.connect(address)
    here, there = socketsOf(readSockets(), {address[1]})
    assert countStates(here).acceptQueue == 2
    assert countStates(there).synSent == 1
    info = tcpInfo(listening)
    assert (info.state, info.unacknowledged, info.selective) == (State.LISTEN, 2, 1)


@needsProc
def test_aLeakIsNamed(stack):
    """
    A program that does not close what its clients closed.
    """
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = listening.getsockname()
    for _ in range(12):
        client = socket.create_connection(address)
        stack.enter_context(listening.accept()[0])
        client.close()
    found = connpool("states", str(address[1]))
    assert found.returncode == 0
    (line,) = [line for line in found.stdout.splitlines() if "CLOSE_WAIT" in line]
    assert line.split()[1:3] == ["12", "0"]
    assert "many: the program forgot to close: a leak" in found.stdout
    counts = json.loads(connpool("states", str(address[1]), "--json").stdout)
    assert counts["here"]["closeWait"] == 12
    assert counts["there"]["finWait2"] == 12


@needsProc
def test_eachSocketWithItsPeerAndProcess(stack):
    pair = Pair(stack)
    found = connpool("states", str(pair.port), "--sockets").stdout.splitlines()
    title = next(n for n, line in enumerate(found) if "PEER" in line)
    rows = [line.split() for line in found[title + 1 :]]
    client = f"127.0.0.1:{pair.client.getsockname()[1]}"
    mine = [row for row in rows if client in row]
    assert {(row[0], row[2]) for row in mine} == {
        ("ESTABLISHED", client),
        ("ESTABLISHED", f"127.0.0.1:{pair.port}"),
    }
    assert all(row[-1].endswith(f"/{os.getpid()}") for row in mine)
    before = datetime.now(UTC)
    told = json.loads(connpool("states", str(pair.port), "--sockets", "--json").stdout)
    assert before <= datetime.fromisoformat(told["time"]) + timedelta(milliseconds=1)
    (served,) = [each for each in told["sockets"] if each["peer"] == client]
    assert (served["state"], served["sendQueue"]) == ("ESTABLISHED", 0)
    assert served["process"].endswith(f"/{os.getpid()}")


@needsProc
def test_filters(stack):
    pair = Pair(stack)
    port = str(pair.port)

    def counts(*words):
        told = json.loads(connpool("states", port, "--json", *words).stdout)
        return {
            name: (told["here"][name], told["there"][name]) for name in ("listen", "established")
        }

    assert counts() == {"listen": (1, 0), "established": (1, 1)}
    assert counts("--state", "established") == {"listen": (0, 0), "established": (1, 1)}
    assert counts("--state=LISTEN", "--state=time-wait") == {
        "listen": (1, 0),
        "established": (0, 0),
    }
    assert counts("--peer", "127.0.0.0/8")["established"] == (1, 1)
    assert counts("--peer", "10.0.0.0/8")["established"] == (0, 0)


def test_processesOfAProc(tmp_path):
    """
    Of those that end meanwhile, or belong to others, nothing is told.
    """
    for pid, name, inodes in ((7, "web", [100, 101]), (8, "odd\nname", [102])):
        descriptors = tmp_path / str(pid) / "fd"
        descriptors.mkdir(parents=True)
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
        for fd, inode in enumerate(inodes):
            (descriptors / str(fd)).symlink_to(f"socket:[{inode}]")
        (descriptors / "9").symlink_to("/dev/null")
    (tmp_path / "9").mkdir()
    assert findProcesses(tmp_path) == {100: "web/7", 101: "web/7", 102: "odd?name/8"}


def test_aSystemThatDoesNotTell(tmp_path, monkeypatch, capsys):
    def refuse(kind):
        raise FileNotFoundError(2, "No such file or directory", "/proc/net/tcp")

    monkeypatch.setattr(psutil, "net_connections", refuse)
    with pytest.raises(StatesUnavailable, match="mount /proc"):
        readSockets(proc=tmp_path)
    monkeypatch.setattr("connpool.commands.states.readSockets", partial(readSockets, proc=tmp_path))
    assert main(["states"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@needsProc
def test_watch(stack):
    """
    Each change is a line, and Ctrl-C ends it.
    """
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = listening.getsockname()
    program = stack.enter_context(
        subprocess.Popen(
            [
                *(sys.executable, "-m", "connpool", "states", str(address[1])),
                *("--watch", "--json", "--interval", "0.01"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env=environment(),
        )
    )
    stack.callback(program.kill)

    def line():
        found = json.loads(program.stdout.readline())
        return {name: n for name, n in found["here"].items() if n}

    assert line() == {"listen": 1}
    client = stack.enter_context(socket.create_connection(address))
    assert line() == {"listen": 1, "established": 1, "acceptQueue": 1}
    server = stack.enter_context(listening.accept()[0])
    assert line() == {"listen": 1, "established": 1}
    client.send(b"12345")
    assert line() == {"listen": 1, "established": 1, "receiveQueueBytes": 5}
    server.recv(5)
    assert line() == {"listen": 1, "established": 1}
    program.send_signal(signal.SIGINT)
    assert program.wait(20) == 130


@needsProc
def test_whatTheCommandTakes(capsys):
    for arguments, shown in (((), "LISTEN"), (("--all",), "MEANING"), (("1",), "no sockets")):
        with socket.create_server(("127.0.0.1", 0)):
            assert main(["states", *arguments]) == 0
        assert shown in capsys.readouterr().out
    for arguments, remedy in (
        (("80", "--all"), "not both"),
        (("no-such-service",), "unknown port"),
        (("65536",), "invalid port"),
        (("80", "--state", "open"), "is not one of LISTEN"),
        (("80", "--peer", "10.0.0.1/8"), "--peer"),
        (("80", "--interval", "0"), "seconds above 0"),
        (("80", "--interval", "inf"), "up to 86400"),
    ):
        assert main(["states", *arguments]) == 2
        wrong = capsys.readouterr().err
        assert remedy in wrong
        assert wrong.count("\n") == 1


# -- single sockets, and the service


def test_parsingOldAndNewKernels():
    import struct

    data = struct.pack("=8B24I", 1, *bytes(7), *range(100, 124))
    info = TCPInfo.parse(data + bytes(100))
    assert info.state is ESTABLISHED
    assert (info.rtt, info.retransmits, info.unacknowledged) == (115e-6, 123, 104)
    with pytest.raises(struct.error):
        TCPInfo.parse(data[:100])


@needsProc
@pytest_twisted.ensureDeferred
async def test_infoOfTransports():
    """
    Also through a proxy header, where the transport is not the socket's own.
    """
    from connpool.proxyprotocol import ProxyHeaderEndpoint

    built = []

    class Kept(Protocol):
        def connectionMade(self):
            built.append(self)

    endpoint = serverFromString(reactor, "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1")
    port = await bounded(endpoint.listen(Factory.forProtocol(Kept)))
    from twisted.internet.endpoints import clientFromString

    caller = ProxyHeaderEndpoint(clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}"))
    client = await bounded(connectProtocol(caller, Protocol()))
    await until(lambda: built)
    for transport in (client.transport, built[0].transport):
        info = tcpInfo(transport)
        assert info.state is ESTABLISHED
        assert info.rtt > 0
        assert info.retransmits == 0
    assert tcpInfo(port).state is State.LISTEN
    client.transport.abortConnection()
    await until(lambda: not built[0].transport.transport.connected)
    assert tcpInfo(built[0].transport) is None
    await bounded(port.stopListening())


@pytest_twisted.ensureDeferred
async def test_listenersAsStats():
    sockets = [
        Socket(State.LISTEN, "0.0.0.0", 80, "0.0.0.0", 0, 0, 1),
        Socket(ESTABLISHED, "127.0.0.1", 80, "127.0.0.1", 9, 0, 0),
        Socket(ESTABLISHED, "127.0.0.1", 81, "127.0.0.1", 9, 0, 0),
    ]
    ports = {"web": {80}, "other": {81}}
    states = TCPStates(reactor, lambda: ports, read=lambda ports: sockets)
    states.startService()
    try:
        await until(lambda: "web" in states.namedServices)
        web = states.getServiceNamed("web")
        assert verifyObject(IStatsSource, web)
        assert (web.kind, web.name) == ("tcp", "web")
        assert web.stats() == StateCounts(listen=1, established=1, acceptQueue=1)
        assert states.getServiceNamed("other").stats().established == 1
        del ports["other"]
        await bounded(states.look())
        assert set(states.namedServices) == {"web"}
    finally:
        await bounded(states.stopService() or states.look())


@pytest_twisted.ensureDeferred
async def test_aTableThatCannotBeRead(expectFailure):
    expectFailure(OSError)

    def read(ports):
        raise OSError(24, "Too many open files")

    states = TCPStates(reactor, lambda: {"web": {80}}, read=read)
    await bounded(states.look())
    assert not states.namedServices


@pytest_twisted.ensureDeferred
async def test_countsAreAbsentWhereTheSystemDoesNotTell():
    """
    Not the old ones, no traceback, and one line however often it looks.
    """
    answers = [[Socket(State.LISTEN, "127.0.0.1", 80, "", 0)]]

    def read(ports):
        if not answers:
            raise StatesUnavailable("no /proc here")
        return answers.pop()

    states = TCPStates(reactor, lambda: {"web": {80}}, read=read)
    with capturedLogs() as logs:
        await bounded(states.look())
        assert set(states.namedServices) == {"web"}
        await bounded(states.look())
        await bounded(states.look())
    assert not states.namedServices
    assert [formatEvent(each) for each in logs] == ["no TCP states: no /proc here"]


@pytest_twisted.ensureDeferred
async def test_countingIsNotTheReactorsWork():
    """
    A hundred thousand sockets are looked at elsewhere, and not at all where
    nothing listens.
    """
    threads = []

    def read(ports):
        threads.append(threading.current_thread())

        def sockets():
            threads.append(threading.current_thread())
            yield Socket(State.LISTEN, "0.0.0.0", 80, "0.0.0.0", 0, 0, 1)

        return sockets()

    listeners = {"web": {80}}
    states = TCPStates(reactor, lambda: listeners, read=read)
    await bounded(states.look())
    assert states.getServiceNamed("web").stats().listen == 1
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    listeners.clear()
    await bounded(states.look())
    assert len(threads) == 2
    assert not states.namedServices


def test_portsOfAService():
    class Service:
        def getHosts(self):
            return [
                IPv4Address("TCP", "127.0.0.1", 80),
                IPv4Address("UDP", "127.0.0.1", 81),
                UNIXAddress(b"/s"),
            ]

    assert portsOf(Service()) == {80}
