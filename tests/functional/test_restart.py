"""
A receiver that is restarted under load loses nothing.
"""

import json
import random
import signal
from contextlib import ExitStack, closing

from tests.helpers.processes import CONNPOOL, running, twistd
from tests.helpers.valve import Valve

FILES = 200
RESTARTS = [signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM]


def test_everyFileArrivesOnceThoughTheReceiverIsRestarted(tmp_path):
    chance = random.Random(7)
    # from an empty one to one that takes longer than the receiver lives
    sizes = [number * 300 for number in range(FILES - 1)] + [3_000_000]
    contents = {f"file{number}": chance.randbytes(size) for number, size in enumerate(sizes)}
    outbox, inbox = tmp_path / "outbox", tmp_path / "inbox"
    outbox.mkdir()
    inbox.mkdir()
    for name, content in contents.items():
        (outbox / name).write_bytes(content)
    share = sum(sizes) / (len(RESTARTS) + 1)

    def receiver():
        return twistd(
            *("filerecv", "--listen=tcp:0:interface=127.0.0.1", "--directory=inbox"),
            "--drain-timeout=0.5",
            cwd=tmp_path,
        )

    def port(program):
        return int(program.waitFor(r"listens on 127\.0\.0\.1:(\d+)")[1])

    with ExitStack() as stack:
        valve = stack.enter_context(closing(Valve()))
        sender = None
        for number, how in enumerate(RESTARTS, 1):
            with receiver() as program:
                valve.target = port(program)
                sender = sender or stack.enter_context(
                    running(
                        *(*CONNPOOL, "send", "--receipt=receipts"),
                        *(f"--to=127.0.0.1:{valve.port}", "outbox"),
                        cwd=tmp_path,
                        XDG_STATE_HOME=str(tmp_path / "state"),
                    )
                )
                # however fast it is, it is in the middle now
                valve.allow(number * share)
                valve.waitUntilHeld()
                program.process.send_signal(how)
                program.process.wait(30)
                valve.target = None
                assert "Traceback" not in program.output
        with receiver() as program:
            valve.target = port(program)
            valve.allow(float("inf"))
            assert sender.process.wait(60) == 0, sender.output
            assert program.stop() in {0, -signal.SIGTERM}

    assert valve.connections > len(RESTARTS)
    arrived = {path.name: path.read_bytes() for path in (inbox / "outbox").iterdir()}
    assert arrived.keys() == contents.keys()
    assert arrived == contents
    receipts = [json.loads(line) for line in (tmp_path / "receipts").read_text().splitlines()]
    assert {receipt["integrity"] for receipt in receipts} == {"verified"}
    assert len({receipt["transferId"] for receipt in receipts}) == FILES
    assert sorted(receipt["name"] for receipt in receipts) == sorted(
        f"outbox/{name}" for name in contents
    )
