"""
The receiver's part of a greeting: C{HELLO}, and the sender's identity.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

import connpool
from connpool.errors import (
    AuthenticationFailed,
    Busy,
    Forbidden,
    ProtocolError,
    TransferError,
    TransferTimeout,
)
from connpool.interfaces import (
    IAuthenticator,
    IDirectoryStore,
    IReadableStore,
    ISparseStore,
    IUpdateStore,
)
from connpool.transfer.digests import Digest, digestNamed
from connpool.transfer.identities import Identity
from connpool.transfer.passwords import credentialsAreSafe
from connpool.transfer.receive import smallfiles
from connpool.transfer.receive.offers import Sender
from connpool.transfer.receive.reception import Reception
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.frames import frame as pack
from connpool.transfer.wire.handshake import (
    CAPABILITIES,
    READ,
    VERSIONS,
    agree,
    transcriptOf,
)
from connpool.transfer.wire.link import Link
from connpool.transfer.wire.messages import Auth, Hello, ReceiverLimits, encode

__all__ = ["STREAMS", "Greeting"]

#: Seconds until a sender has said HELLO, and until it has authenticated.
HELLO_TIMEOUT = 10.0
AUTH_TIMEOUT = 30.0
#: Offers open at once in one session.
STREAMS = 256
#: PUTs that are not acknowledged, at most: as many as any receiver lets.
INFLIGHT_FILES = 16_384


class Greeting:
    """
    The greeting of one connection.

    @param letIn: told the sender, and the transcript that C{READY} confirms; it may raise
        L{Busy}.
    @param broken: told why the sender is not let in.
    @param peer: the sender's name in logs.
    @param digests: algorithms in order of preference.
    @param authenticator: L{None} if everybody may send.
    """

    _log = Logger()

    def __init__(
        self,
        letIn: Callable[[Sender, bytes], None],
        broken: Callable[[TransferError], None],
        link: Link,
        peer: str,
        clock: Any,
        reception: Reception,
        digests: Sequence[str],
        authenticator: IAuthenticator | None,
    ) -> None:
        self._tellLetIn = letIn
        self._broken = broken
        self._link = link
        self._peer = peer
        self._clock = clock
        self._reception = reception
        self._digests = tuple(digests)
        self._authenticator = authenticator
        self._state = self._hello
        self._identity: Identity | None = None
        self._digest: Digest
        self._transcript = b""
        self._capabilities: tuple[str, ...] = CAPABILITIES
        self._agreed: frozenset[str] = frozenset()
        self._await(Type.HELLO, HELLO_TIMEOUT)

    def _await(self, kind: Type, seconds: float) -> None:
        # nothing else is even kept
        self._link.reader.expected = {kind, Type.ERROR}
        self._deadline: Any = self._clock.callLater(seconds, self._tooLate, kind.name)

    def _tooLate(self, what: str) -> None:
        self._broken(TransferTimeout(f"no {what} in time"))

    def frameReceived(self, frame: Frame, message: Any) -> None:
        """
        Take a frame.
        """
        self._state(frame, message)

    def stop(self) -> None:
        """
        End the deadline.
        """
        if self._deadline.active():
            self._deadline.cancel()

    def _hello(self, frame: Frame, message: Any) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"{frame.type.name} before HELLO")
        policy, store = self._reception.policy, self._reception.store
        lacking = {
            capability
            for capability, part in (
                ("directories", IDirectoryStore),
                ("holes", ISparseStore),
                ("update", IUpdateStore),
            )
            if not part.providedBy(store)
        }
        if not policy.compression:
            lacking.add("zstd")
        self._capabilities = tuple(c for c in CAPABILITIES if c not in lacking)
        if policy.reading and IReadableStore.providedBy(store):
            self._capabilities += (READ,)
        limits = ReceiverLimits(
            policy.maxFileSize,
            smallfiles.SMALL_FILE_BYTES,
            smallfiles.PENDING_BYTES * 2,
            INFLIGHT_FILES,
            STREAMS,
            max(1, int(policy.idleTimeout)),
        )
        methods = self._methods()
        ours = Hello(
            VERSIONS,
            f"connpool/{connpool.__version__}",
            self._capabilities,
            self._digests,
            os.urandom(32),
            limits,
            methods,
        )
        wire = encode(Type.HELLO, 0, ours)
        self._link.send(wire)
        agreement = agree(message, ours)
        if not methods:
            raise Forbidden("credentials are needed, and are taken only within TLS")
        self._digest = digestNamed(agreement.digest)
        self._agreed = agreement.capabilities
        self._transcript = transcriptOf(pack(frame.type, 0, frame.control), wire)
        self.stop()
        self._state = self._auth
        self._await(Type.AUTH, AUTH_TIMEOUT)

    def _methods(self) -> tuple[str, ...]:
        authenticator, transport = self._authenticator, self._link.transport
        if authenticator is None:
            return ("none",)
        self._identity = authenticator.certified(transport)
        if self._identity is not None:
            return ("none",)
        if not authenticator.takesPasswords:
            raise Forbidden("a client certificate that the receiver knows is needed")
        return ("password",) if credentialsAreSafe(transport) else ()

    def _auth(self, frame: Frame, message: Any) -> None:
        if not isinstance(message, Auth):
            raise ProtocolError(f"{frame.type.name} before AUTH")
        if not hmac.compare_digest(message.transcript, self._transcript):
            raise ProtocolError("the two sides saw different HELLOs: changed on the way")
        authenticator = self._authenticator
        if authenticator is None or self._identity is not None:
            if message.method != "none":
                raise AuthenticationFailed("no password is asked for here")
            self._letIn(self._identity)
            return
        if message.method != "password":
            raise AuthenticationFailed("a user and a password are asked for")
        checking = authenticator.password(self._link.transport, message.user, message.secret)
        self._link.waitFor(checking.addCallbacks(self._letIn, self._denied))

    def _letIn(self, identity: Identity | None) -> None:
        if self._link.ended is not None:
            return
        self.stop()
        try:
            sender = Sender(self._peer, identity, self._digest, self._agreed)
            self._tellLetIn(sender, self._transcript)
        except Busy as e:
            self._broken(e)

    def _denied(self, failure: Failure) -> None:
        self._reception.recent.deniedEntry(self._peer)
        why = failure.value
        if not isinstance(why, AuthenticationFailed):
            self._log.failure("credentials could not be checked", failure)
            why = AuthenticationFailed("user or password is wrong")
        self._broken(why)
