"""
One tree of exceptions for the whole package.

Every class carries C{code}, a stable word for logs, metrics and the wire, and
C{exitCode}, what a command of ours exits with when this error ends it.  The
texts are read by operators: they name what is wrong and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AcquireTimeout",
    "AddressError",
    "AuthenticationFailed",
    "Busy",
    "Cancelled",
    "CertificateRefused",
    "ChangedSource",
    "ConflictTakeover",
    "ConnectFailed",
    "ConnpoolError",
    "DestinationBad",
    "DigestMismatch",
    "DoubleRelease",
    "Exists",
    "Expired",
    "Forbidden",
    "ForeignLease",
    "FrameDamaged",
    "HeaderError",
    "Held",
    "HookRefused",
    "LeaseError",
    "LeaseReleased",
    "LookupFailed",
    "NameRefused",
    "NetworkFailed",
    "NoInodes",
    "NoSpace",
    "NotFound",
    "Overloaded",
    "PoolClosed",
    "PoolDown",
    "PoolError",
    "PoolPaused",
    "ProbeFailed",
    "ProtocolError",
    "QuotaExceeded",
    "Skipped",
    "SourceError",
    "StartFailed",
    "StatesUnavailable",
    "StoreError",
    "SyncFailed",
    "TooLarge",
    "TooManyWaiters",
    "TooSlow",
    "TransferError",
    "TransferTimeout",
    "Unanswered",
    "Unavailable",
    "Unconfirmed",
    "Unsupported",
    "WrongSetting",
]


class ConnpoolError(Exception):
    """
    Anything this package raises on purpose.
    """

    code: ClassVar[str] = "error"
    exitCode: ClassVar[int] = 1


class StartFailed(ConnpoolError):
    """
    A service cannot start: its text is the one line an operator reads.
    """

    code = "start-failed"


class WrongSetting(ConnpoolError, ValueError):
    """
    A service cannot be made of these values: the text says in one line which, and
    names the option of the plugin that has the same meaning.
    """

    code = "wrong-setting"
    exitCode = 2


# -- addresses and the PROXY protocol ---------------------------------------


class StatesUnavailable(ConnpoolError):
    """
    This system does not show its TCP sockets to us.
    """

    code = "states-unavailable"


class AddressError(ConnpoolError, ValueError):
    """
    A text is not an address, network or endpoint description.
    """

    code = "bad-address"
    exitCode = 2


class LookupFailed(AddressError):
    """
    A name has no address, or nobody answered in time.
    """

    code = "lookup-failed"
    exitCode = 7


class HeaderError(ConnpoolError, ValueError):
    """
    A PROXY protocol header is malformed, too long, or not allowed here.
    """

    code = "bad-header"
    exitCode = 7


# -- datagrams ---------------------------------------------------------------


class ProbeFailed(ConnpoolError):
    """
    A path cannot be measured: no socket, no such host, or the far side does not
    speak the protocol.
    """

    code = "probe-failed"


# -- the pool ----------------------------------------------------------------


class PoolError(ConnpoolError):
    """
    The pool cannot serve an acquire.
    """

    code = "pool"
    exitCode = 7


class PoolClosed(PoolError):
    """
    The pool is closed or closing.
    """

    code = "pool-closed"


class PoolPaused(PoolError):
    """
    The pool is paused and was told not to queue.
    """

    code = "pool-paused"


class AcquireTimeout(PoolError):
    """
    No connection became free in time.
    """

    code = "acquire-timeout"


class TooManyWaiters(PoolError):
    """
    The queue of waiters is full.
    """

    code = "too-many-waiters"


class Overloaded(PoolError):
    """
    The queue sheds load: this acquire waited longer than its target.
    """

    code = "overloaded"


class DestinationBad(PoolError):
    """
    A server accepts connections and is of no use, such as a database that is
    read-only after a fail-over.  Raised by users' own code, see
    L{connpool.interfaces.IPoolable}.
    """

    code = "destination-bad"


class ConnectFailed(PoolError):
    """
    A connection could not be dialled, handshaken or prepared.
    """

    code = "connect-failed"


class PoolDown(PoolError):
    """
    The destination is down and the pool holds no live connection.

    @ivar retryAfter: seconds until the pool tries again.
    """

    code = "pool-down"

    def __init__(self, message: str = "", retryAfter: float = 0.0) -> None:
        super().__init__(message)
        self.retryAfter = retryAfter


class LeaseError(ConnpoolError):
    """
    A lease was used against its contract.
    """

    code = "lease"


class DoubleRelease(LeaseError):
    """
    A lease was given back twice.
    """

    code = "double-release"


class LeaseReleased(LeaseError):
    """
    A lease was used after it was given back.
    """

    code = "lease-released"


class ForeignLease(LeaseError):
    """
    A lease or connection of another pool was given back to this one.
    """

    code = "foreign-lease"


# -- transfer ----------------------------------------------------------------
# The codes below go over the wire (docs/protocol.rst) and into receipts.


class TransferError(ConnpoolError):
    """
    A transfer did not succeed.

    @cvar retryable: whether the same transfer may succeed later.
    """

    code = "transfer"
    exitCode = 3
    retryable: ClassVar[bool] = False


class NameRefused(TransferError):
    """
    The file name is not one this receiver takes.
    """

    code = "name-refused"
    exitCode = 4


class Exists(TransferError):
    """
    A different file already has this name.
    """

    code = "exists"
    exitCode = 4


class Skipped(Exists):
    """
    A different file already has this name, and the rule C{skip} leaves it there.
    """


class TooLarge(TransferError):
    """
    The file is larger than the receiver takes.
    """

    code = "too-large"
    exitCode = 4


class QuotaExceeded(TransferError):
    """
    The sender's quota is used up.
    """

    code = "quota"
    exitCode = 4


class NoSpace(TransferError):
    """
    The receiver's disk is full.
    """

    code = "no-space"
    exitCode = 4
    retryable = True


class NoInodes(NoSpace):
    """
    The receiver's file system can hold no more files, whatever their size.
    """

    code = "no-inodes"


class Busy(TransferError):
    """
    The receiver serves as many transfers as it may; try later.
    """

    code = "busy"
    exitCode = 4
    retryable = True


class Unavailable(TransferError):
    """
    The place where the receiver keeps its files does not answer; try later.
    """

    code = "unavailable"
    exitCode = 7
    retryable = True


class Forbidden(TransferError):
    """
    The receiver does not take files from this sender.
    """

    code = "forbidden"
    exitCode = 4


class HookRefused(TransferError):
    """
    A program of the receiver does not let this content be published.
    """

    code = "hook-refused"
    exitCode = 4


class Held(TransferError):
    """
    A program of the receiver did not say whether this content may be published.
    """

    code = "held"
    exitCode = 4
    retryable = True


class NotFound(TransferError):
    """
    There is nothing to be read under this name, or not for this reader.
    """

    code = "not-found"
    exitCode = 4


class Unsupported(TransferError):
    """
    The two sides have no version, digest or feature in common.
    """

    code = "unsupported"
    exitCode = 4


class AuthenticationFailed(TransferError):
    """
    Credentials are missing or wrong.
    """

    code = "auth-failed"
    exitCode = 6


class CertificateRefused(TransferError):
    """
    A certificate, the receiver's or ours, is not trusted by the other side.
    """

    code = "certificate"
    exitCode = 7


class DigestMismatch(TransferError):
    """
    The bytes that arrived are not the bytes that were sent.
    """

    code = "digest-mismatch"
    exitCode = 5


class ChangedSource(TransferError):
    """
    The source file changed while it was read.
    """

    code = "source-changed"
    exitCode = 8


class SourceError(TransferError):
    """
    The source file cannot be read.
    """

    code = "source-error"


class StoreError(TransferError):
    """
    The store failed; the partial, if any, is not trusted again.
    """

    code = "store-error"


class SyncFailed(StoreError):
    """
    Data could not be made durable.
    """

    code = "sync-failed"


class Expired(TransferError):
    """
    A partial or ticket is gone.
    """

    code = "expired"
    retryable = True


class ConflictTakeover(TransferError):
    """
    A newer connection of the same sender took this transfer over.
    """

    code = "conflict-takeover"


class Cancelled(TransferError):
    """
    One side cancelled the transfer.
    """

    code = "cancelled"
    exitCode = 130


class TransferTimeout(TransferError):
    """
    A step of the transfer passed its deadline.
    """

    code = "timeout"
    exitCode = 7
    retryable = True


class TooSlow(TransferError):
    """
    The sender stayed under the minimum rate.
    """

    code = "too-slow"
    exitCode = 7
    retryable = True


class NetworkFailed(TransferError):
    """
    The connection was refused, lost or reset.
    """

    code = "network"
    exitCode = 7
    retryable = True


class Unanswered(NetworkFailed):
    """
    The peer closed the connection and said nothing at all.
    """

    code = "unanswered"


class ProtocolError(TransferError):
    """
    The peer broke the protocol.
    """

    code = "protocol"
    exitCode = 7


class FrameDamaged(ProtocolError):
    """
    A frame is not what the peer sent.
    """

    code = "damaged"
    retryable = True


class Unconfirmed(TransferError):
    """
    Everything was sent; the protocol has no way to say that it arrived.
    """

    code = "unconfirmed"
    exitCode = 9
