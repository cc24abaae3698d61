"""
A host with several links, in network namespaces of the tests' own.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_numbers = itertools.count()


def ip(*words: str) -> str:
    """
    The output of C{ip WORDS}.
    """
    return subprocess.run(
        ["ip", *words], check=True, capture_output=True, text=True, timeout=20
    ).stdout


class Namespace:
    """
    A network namespace.

    @ivar enter: the words that run a command in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.enter = ["ip", "netns", "exec", name]

    def sh(self, command: str) -> str:
        """
        The output of a shell command in it.
        """
        return subprocess.run(
            [*self.enter, "sh", "-c", command],
            check=True, capture_output=True, text=True, timeout=20,
        ).stdout  # fmt: skip

    def linkLocal(self, link: str) -> str:
        """
        The link-local address of a link.
        """
        found = re.search(r"inet6 (fe80[^/]*)/", ip("-n", self.name, "-6", "addr", "show", link))
        assert found is not None, f"{link} has no link-local address"
        return found[1]


def unusable(reason: str) -> None:
    """
    Skip here, fail in CI.
    """
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must permit it", pytrace=False)
    pytest.skip(reason)


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """
    Fresh namespaces; skips with a reason where they are not permitted.
    """
    made = [Namespace(f"cptest{os.getpid()}n{next(_numbers)}") for _ in range(count)]
    try:
        for each in made:
            try:
                ip("netns", "add", each.name)
            except (OSError, subprocess.CalledProcessError) as e:
                why = getattr(e, "stderr", None) or str(e)
                unusable(f"network namespaces are not permitted: {why.strip()}")
            ip("-n", each.name, "link", "set", "lo", "up")
        yield made
    finally:
        for each in made:
            subprocess.run(
                ["ip", "netns", "delete", each.name], check=False, capture_output=True, timeout=20
            )


def link(one: Namespace, name: str, other: Namespace, otherName: str, mac: str = "") -> None:
    """
    Join two namespaces; the addresses of both ends are usable at once.

    @param mac: of the other end, from which its link-local address is made.
    """
    words = ["address", mac] if mac else []
    try:
        ip("-n", one.name, "link", "add", name, "type", "veth",
           "peer", "name", otherName, *words, "netns", other.name)  # fmt: skip
    except subprocess.CalledProcessError as e:
        unusable(f"links between network namespaces are not permitted: {e.stderr.strip()}")
    for side, its in ((one, name), (other, otherName)):
        side.sh(f"echo 0 > /proc/sys/net/ipv6/conf/{its}/accept_dad")
    for side, its in ((one, name), (other, otherName)):
        ip("-n", side.name, "link", "set", its, "up")
