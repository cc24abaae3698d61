"""
The walk through a connection's life in C{docs/tcp.rst}, run as it is written.
"""

import code
import re
from pathlib import Path

import pytest

from connpool.observe.tcpstates import State
from connpool.observe.tcpstates_read import PROC
from tests.helpers.ports import freePort
from tests.helpers.processes import connpool, twistd

PAGE = (Path(__file__).parent.parent.parent / "docs/tcp.rst").read_text()

BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)


def blocks(page):
    """
    The kind of each example and its lines.
    """
    for kind, text in BLOCK.findall(page):
        yield kind, [line[3:] for line in text.rstrip("\n").split("\n")]


class Prompt(code.InteractiveConsole):
    """
    A Python prompt that remembers what it printed.
    """

    def __init__(self):
        super().__init__({})
        self.printed = []

    def type(self, lines, ports):
        expected = []
        for line in lines:
            for written, real in ports.items():
                line = line.replace(written, real)
            if line.startswith((">>> ", "... ")):
                if line.startswith(">>> "):
                    self.push("")
                self.push(line[4:])
            else:
                expected.append(line)
        self.push("")
        assert self.printed == expected
        self.printed.clear()

    def runcode(self, compiled):
        import sys

        previous, sys.displayhook = sys.displayhook, self.show
        try:
            exec(compiled, self.locals)
        finally:
            sys.displayhook = previous

    def show(self, value):
        if value is not None:
            self.printed.append(repr(value))


def measure(text):
    """
    Output with the bytes of queues, which differ between machines, left out.
    """
    return [re.sub(r"^( +queue) .*(  bytes)", r"\1\2", line) for line in text]


@pytest.mark.skipif(not PROC.exists(), reason="no /proc here")
def test_theWalk(tmp_path):
    ports = {written: str(freePort()) for written in ("8641", "8642", "8643")}
    prompt = Prompt()
    steps = 0
    listen = f"tcp:{ports['8641']}:interface=127.0.0.1"
    with twistd("udpecho", "--listen", listen, cwd=tmp_path) as service:
        service.waitFor(r"starting on \d+")
        for kind, lines in blocks(PAGE):
            if kind == "pycon":
                prompt.type(lines, ports)
            elif lines[0].startswith("$ connpool states "):
                port = ports[lines[0].split()[-1]]
                for _ in range(20):
                    shown = connpool("states", port).stdout.rstrip("\n").split("\n")
                    if measure(shown) == measure(lines[1:]):
                        break
                assert measure(shown) == measure(lines[1:])
                steps += 1
        for name in ("first", "second", "third", "busy"):
            prompt.locals[name].close()
    assert steps == 7
    assert "Traceback" not in service.output


def test_theTableOfStates():
    for state in State:
        row = f"   * - {state.name}\n     - {state.meaning}\n     - {state.surplus}".rstrip()
        assert row in PAGE
