"""
The sockets that systemd passed to this process.
"""

from __future__ import annotations

import os
import socket

from twisted.internet import endpoints
from twisted.python.systemd import ListenFDs

from connpool.addresses.descriptions import Listen
from connpool.errors import AddressError

__all__ = ["checkInherited", "inheritedSocket"]


def inheritedSocket(listen: Listen) -> socket.socket:
    """
    Find the socket of a description that has C{name=} or C{index=}.

    @return: a copy, for the caller to close.
    @raise AddressError: there is none, or more than one.
    """
    # reading the environment clears it, and Twisted does so when its parser of
    # systemd: endpoints is imported; there is no public way to what it found
    inherited: ListenFDs = endpoints._SystemdParser._sddaemon
    name, index = listen.keywords.get("name"), listen.keywords.get("index")
    fds = inherited.inheritedDescriptors()
    if name is not None:
        found = [fd for fd, each in zip(fds, inherited._names, strict=True) if each == name]
    else:
        found = fds[int(index or 0) :][:1]
    if not found:
        raise AddressError(
            f"systemd passed no such socket: {listen.description}; "
            "see FileDescriptorName= in the socket unit"
        )
    if len(found) > 1:
        raise AddressError(
            f"systemd passed {len(found)} sockets with this name: {listen.description}; make a "
            "socket unit for each, with its own FileDescriptorName="
        )
    try:
        return socket.socket(fileno=os.dup(found[0]))
    except OSError as e:
        raise AddressError(
            f"{listen.description}: {e.strerror}; is the unit's socket open?"
        ) from None


def checkInherited(listen: Listen) -> None:
    """
    Look at the socket of a C{systemd:} description.

    @raise AddressError: it cannot be listened on as is written.
    """
    with inheritedSocket(listen) as passed:
        domain = passed.family.name.removeprefix("AF_")
        if passed.type is not socket.SOCK_STREAM:
            raise AddressError(f"{listen.description}: not a stream socket; use ListenStream=")
        if domain != listen.keywords["domain"]:
            raise AddressError(f"{listen.description}: the socket is of domain={domain}")
