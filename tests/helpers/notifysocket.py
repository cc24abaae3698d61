"""
What systemd is to a service: a socket that takes its notifications.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path


class NotifySocket:
    """
    @ivar address: for C{NOTIFY_SOCKET}.
    """

    def __init__(self, address: Path | str) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0"))

    def receive(self, seconds: float = 20.0) -> list[str]:
        """
        The lines of the next datagram.
        """
        self._socket.settimeout(seconds)
        return self._socket.recv(4096).decode().split("\n")

    def waitFor(self, line: str, seconds: float = 20.0) -> list[str]:
        """
        The datagram that has C{line}; earlier ones are dropped.
        """
        end = time.monotonic() + seconds
        while line not in (lines := self.receive(max(0.01, end - time.monotonic()))):
            pass
        return lines

    def close(self) -> None:
        self._socket.close()
