"""
The receiver's part of a greeting: HELLO, and who the sender is.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from twisted.python.failure import Failure

import connpool
from connpool.errors import (
    AuthenticationFailed,
    Busy,
    Forbidden,
    ProtocolError,
    TransferTimeout,
)
from connpool.interfaces import IDirectoryStore
from connpool.transfer.digests import Digest, digestNamed
from connpool.transfer.identities import Identity
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.frames import frame as pack
from connpool.transfer.wire.handshake import CAPABILITIES, VERSIONS, agree, transcriptOf
from connpool.transfer.wire.link import Link
from connpool.transfer.wire.messages import Auth, Hello, Limits, encode
from connpool.transfer.wire.safety import credentialsAreSafe

if TYPE_CHECKING:
    from connpool.transfer.receive.session import ReceiverSession

__all__ = ["FROM_SENDER", "ON_JOINED", "PENDING_BYTES", "SMALL_FILE", "STREAMS", "Greeting"]

#: Seconds until a sender has said HELLO, and until it has authenticated.
HELLO_TIMEOUT = 10.0
AUTH_TIMEOUT = 30.0
#: Bytes of a file that may come by PUT.
SMALL_FILE = 256 * 1024
#: PUTs being stored, at most, before we stop reading.
PENDING_BYTES = 32 << 20
#: Offers open at once in one session.
STREAMS = 256
#: The types that are taken after the greeting, and on a connection that has joined another.
FROM_SENDER = frozenset(
    {
        *(Type.PUT, Type.OFFER, Type.DATA, Type.DIGESTS, Type.REVOKE, Type.COMMIT, Type.CANCEL),
        *(Type.PING, Type.PONG, Type.JOIN, Type.ERROR),
    }
)
ON_JOINED = frozenset({Type.DATA, Type.DIGESTS, Type.PING, Type.PONG, Type.ERROR})


class Greeting:
    """
    @param session: told with L{ReceiverSession.letIn} when all is right, else
        with L{ReceiverSession.broken}.
    """

    _log = Logger()

    def __init__(self, session: ReceiverSession, link: Link) -> None:
        self._session = session
        self._registry = session.registry
        self._link = link
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
        self._deadline: Any = self._registry.clock.callLater(seconds, self._tooLate, kind.name)

    def _tooLate(self, what: str) -> None:
        self._session.broken(TransferTimeout(f"no {what} in time"))

    def frameReceived(self, frame: Frame, message: Any) -> None:
        """
        A frame came.
        """
        self._state(frame, message)

    def stop(self) -> None:
        """
        It is over.
        """
        if self._deadline.active():
            self._deadline.cancel()

    def _hello(self, frame: Frame, message: Any) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"{frame.type.name} before HELLO")
        policy, store = self._registry.reception.policy, self._registry.reception.store
        if not IDirectoryStore.providedBy(store):
            self._capabilities = tuple(c for c in CAPABILITIES if c != "directories")
        limits = Limits(
            policy.maxFileSize,
            SMALL_FILE,
            PENDING_BYTES * 2,
            16_384,
            STREAMS,
            max(1, int(policy.idleTimeout)),
        )
        methods = self._methods()
        ours = Hello(
            VERSIONS,
            f"connpool/{connpool.__version__}",
            self._capabilities,
            self._registry.digests,
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
        authenticator, transport = self._registry.authenticator, self._link.transport
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
        authenticator = self._registry.authenticator
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
            self._session.letIn(identity, self._digest, self._agreed, self._transcript)
        except Busy as e:
            self._session.broken(e)

    def _denied(self, failure: Failure) -> None:
        self._registry.reception.recent.deniedEntry(self._session.peer)
        why = failure.value
        if not isinstance(why, AuthenticationFailed):
            self._log.failure("credentials could not be checked", failure)
            why = AuthenticationFailed("user or password is wrong")
        self._session.broken(why)
