"""
Messages to systemd: a service is ready, reloads, stops, is alive.

The protocol is one datagram of C{NAME=value} lines to a socket in the
environment (sd_notify(3)); Twisted has none.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

import attrs
from twisted.logger import Logger

__all__ = ["Notifier"]

_log = Logger()


@attrs.frozen
class Notifier:
    """
    @ivar address: where the datagrams go; empty when nobody listens, then
        nothing is sent.  An C{@} in front means an abstract socket.
    @ivar watchdogInterval: seconds between the signs of life to be sent, half
        of what is allowed to pass; 0 when nobody waits for them.
    """

    address: str = ""
    watchdogInterval: float = 0.0

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """
        Take the variables out of the environment: the programs we start are
        not the service.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        allowed = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        ours = address and pid in {"", str(os.getpid())} and allowed.isdigit()
        return cls(address, int(allowed) / 2e6 if ours else 0.0)

    def tell(self, *lines: str) -> None:
        """
        Send C{lines}, of each its first line; a failure is logged and changes
        nothing.
        """
        if not self.address:
            return
        where = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(1.0)
                text = "\n".join(line.partition("\n")[0] for line in lines)
                out.sendto(text.encode("utf-8", "backslashreplace"), where)
        except OSError as e:
            _log.warn("cannot notify {address}: {why}", address=self.address, why=str(e))
