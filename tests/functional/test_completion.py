"""
The completion of C{connpool} in the shells that it is for.
"""

import contextlib
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from connpool.commands import COMMANDS, main, parserOf
from connpool.commands.completion import SHELLS
from tests.helpers.processes import CHECKOUT, environment, run

#: Prints for each pair of a line and its last word the words that bash offers, on one line.
ASK = """
source {completion}
function=$(complete -p connpool | sed 's/.*-F \\([^ ]*\\).*/\\1/')
while [ $# -gt 0 ]; do
    eval "words=($1)"
    COMP_WORDS=("${{words[@]}}" "$2")
    COMP_CWORD=${{#words[@]}}
    $function connpool "$2" "${{words[-1]}}"
    echo "${{COMPREPLY[@]}}"
    shift 2
done
"""


@pytest.fixture
def path(tmp_path):
    """
    A C{PATH} with C{connpool} of this checkout.
    """
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/connpool"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m connpool "$@"\n')
    script.chmod(0o755)
    return f"{tmp_path}/bin:{os.environ['PATH']}"


@pytest.mark.peer("bash")
def test_bash(path, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    offered = {
        ("connpool", "s"): {"send", "states"},
        ("connpool send", "--ex"): {"--exclude", "--exclude-from"},
        ("connpool send --durability", ""): {"best", "none", "data", "full"},
        ("connpool send --receipt", "photo"): {"photo.jpg", "photos"},
        ("connpool partials", "ph"): {"photos"},
    }
    script = ASK.format(completion=CHECKOUT / "completion/connpool")
    command = ["bash", "--norc", "-c", script, "-", *(word for pair in offered for word in pair)]
    done = run(command, text=True, cwd=tmp_path, env=environment(PATH=path))
    assert (done.returncode, done.stderr) == (0, "")
    assert [set(line.split()) for line in done.stdout.splitlines()] == list(offered.values())


@pytest.mark.peer("zsh")
def test_zsh(path, tmp_path):
    """
    At a terminal, with the file that the wheel installs on zsh's own path.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment(PATH=path, HOME=str(tmp_path), TERM="dumb"),
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""

    def until(word):
        nonlocal shown
        end = time.monotonic() + 30
        while word not in shown:
            assert time.monotonic() < end, shown
            if select.select([ours], [], [], 1)[0]:
                with contextlib.suppress(OSError):
                    shown += os.read(ours, 65536)
        shown = b""

    try:
        os.write(ours, f"fpath=({CHECKOUT}/completion $fpath)\n".encode())
        os.write(ours, b"autoload -U compinit; compinit -D -u; PS1=ready; echo go''ing\n")
        until(b"going")
        os.write(ours, b"connpool send --dur\t")
        until(b"ability")
        os.write(ours, b" fu\t")
        until(b"ll")
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)


@pytest.mark.parametrize("shell", SHELLS)
def test_everyOptionOfEveryCommandIsThere(shell, capsys):
    """
    It is made from the options.
    """
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    (subparsers,) = (each for each in parserOf(COMMANDS)._actions if each.choices)
    assert set(subparsers.choices) == set(COMMANDS)
    for parser in subparsers.choices.values():
        for action in parser._actions:
            assert all(option in printed for option in action.option_strings)
