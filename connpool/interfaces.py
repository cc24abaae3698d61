"""
Every zope interface that a plugin or an embedding application may provide.

The contract is here; implementations do not repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from connpool.datagram.info import DatagramInfo
    from connpool.transfer.identities import Identity
    from connpool.transfer.names import RelativeName
    from connpool.transfer.records import (
        AskedFile,
        DirectoryMade,
        EndedTransfer,
        FileRange,
        FileStat,
        Listing,
        LiveTransfer,
        Offer,
        PartialInfo,
        Receipt,
        SmallFile,
        StoreSettings,
        Stump,
    )

__all__ = [
    "IAuthenticator",
    "IConnecting",
    "IConnectionPool",
    "IDatagramResponder",
    "IDatagramResponderFactory",
    "IDirectoryStore",
    "IDrainable",
    "IDrainableProtocol",
    "IFileStore",
    "IFileStoreFactory",
    "IInspectablePartial",
    "IInspectableStore",
    "ILease",
    "ILiveTransfers",
    "INotingStore",
    "IObservedStore",
    "IPartial",
    "IPartialHolder",
    "IPoolObserver",
    "IPoolable",
    "IReadableStore",
    "IReadiness",
    "IRecentTransfers",
    "IReflector",
    "IReloadable",
    "IRememberingStore",
    "ISharedUploadStore",
    "ISingleUseEndpoint",
    "ISparsePartial",
    "ISparseStore",
    "IStatsSource",
    "ITransferJudge",
    "ITransferListener",
    "ITransferListenerFactory",
    "IUpdateStore",
    "IUploadPartial",
    "IUploadStore",
]


class IStatsSource(Interface):
    """
    Something whose numbers an operator wants to see.

    C{connpool.observe} looks at rooms only through this interface; metric
    names follow from C{kind} and the snapshot's fields, and the help texts are
    their C{@ivar} lines.  A field is annotated as

      - C{int}: a counter, which only grows; or a gauge, if the class names it
        in C{GAUGES}, a C{ClassVar[frozenset[str]]} that every snapshot class
        has.  A name that ends in C{Bytes} counts bytes.
      - C{float}: seconds.
      - C{bool}: a gauge.
      - C{str}: a word for the state.
      - C{dict[str, int]} (or another mapping): the same for each key.
      - a C{Histogram}: durations by bucket, with C{bounds}, C{counts} and
        C{total}, seconds.
    """

    name: str = Attribute("The instance's name, unique within its kind in one process.")
    kind: str = Attribute(
        "One of C{pool}, C{transfer}, C{web}, C{datagram}, C{probe}, C{listener}, C{proxy}, "
        "C{outbox}, C{s3}."
    )

    def stats() -> Any:
        """
        @return: a frozen attrs instance: gauges and monotonic counters as of
            now.  Cheap: no I/O, no scan.
        """


class IConnecting(Interface):
    """
    A source of numbers that makes connections to somebody else.
    """

    def destinations() -> Sequence[str]:
        """
        @return: the places to which it connects, each as C{HOST:PORT} or the path of a
            socket, the preferred first; those that cannot be named are left out.
        """


class IReadiness(Interface):
    """
    A service that may run and still not be able to do its work.
    """

    def trouble() -> str | None:
        """
        @return: why new work is refused now, one line for readiness checks and
            operators; L{None} if it is not.  Cheap: no I/O.
        """


class IDrainable(Interface):
    """
    A factory whose connections can be asked to finish.
    """

    def drain() -> Deferred[None]:
        """
        Begin nothing new, let what runs end.

        @return: fires when nothing runs any more; never fails.  Calling it
            again returns another Deferred for the same end.
        """

    def abort() -> None:
        """
        End what still runs, at once.  Deferreds of L{drain} fire once the
        connections are gone.
        """


class IDrainableProtocol(Interface):
    """
    A connection that can be asked to finish.
    """

    def drain() -> None:
        """
        Begin nothing new, and close the connection once what runs has ended.
        """


# -- network -----------------------------------------------------------------


class ISingleUseEndpoint(Interface):
    """
    A marker for client endpoints whose connections speak for one client: none
    may be kept and given to another (PROXY protocol, section 2).  A pool that
    reuses connections refuses them.
    """


# -- the pool ----------------------------------------------------------------


class ILease(Interface):
    """
    The right to use one connection.
    """

    protocol: Any = Attribute(
        "The user's protocol.  Reading it after the lease was given back raises L{LeaseReleased}."
    )
    number: int = Attribute("The connection's number: 1, 2, … in the order of dialling.")
    uses: int = Attribute("How often this connection was leased, this lease included.")
    released: bool = Attribute("Whether the lease was given back.")

    def release() -> None:
        """
        Give the connection back as good.  If it was lost meanwhile, nothing
        happens.  Without an L{IPoolable} adapter the caller is trusted.

        @raise DoubleRelease: the lease was given back before.
        """

    def discard(*, destinationBad: bool = False) -> None:
        """
        Give the connection back as bad: it is closed.

        @param destinationBad: its server is of no use, though it accepts connections
            (a database that is read-only after a fail-over): that counts as a failed
            dial, and no other connection to it is leased again.
        @raise DoubleRelease: the lease was given back before.
        """

    def detach() -> Any:
        """
        Keep the connection; the pool forgets it and has its slot free at once.

        @return: the protocol, for the caller to close.
        @raise DoubleRelease: the lease was given back before.
        @raise LeaseError: the connection is closed.
        """


class IConnectionPool(Interface):
    """
    A bounded set of connections that are used again.  For the reactor's thread.

    An acquire fails with L{AcquireTimeout}, L{TooManyWaiters}, L{Overloaded},
    L{ConnectFailed}, L{PoolDown}, L{PoolPaused} or L{PoolClosed}.
    """

    settings: Any = Attribute("The limits, a frozen L{connpool.pool.Settings}.")

    def acquire(timeout: float | None = ...) -> Deferred[Any]:
        """
        @param timeout: seconds; L{None}: for ever; 0: only what is there now;
            left out: the pool's C{acquireTimeout}.
        @return: fires with a lease; cancelling it leaves the queue.
        @raise ValueError: for a timeout out of range.
        """

    def tryAcquire() -> ILease | None:
        """
        @return: a lease of an idle connection, or L{None}.  It never waits,
            never dials, and overtakes nobody who waits.
        """

    def lease(timeout: float | None = ...) -> Any:
        """
        @return: for C{async with pool.lease() as protocol}: released when the
            block ends; when it ends by an exception or cancellation, discarded,
            unless an L{IPoolable} says that the connection is reusable.
        """

    def run(f: Any, *args: Any, timeout: float | None = ..., **kwargs: Any) -> Deferred[Any]:
        """
        C{f(protocol, *args, **kwargs)} with a lease around it, as L{lease} has it.

        @param f: may return a Deferred or a coroutine.
        @return: fires with what C{f} returns.
        """

    def release(lease: ILease) -> None:
        """
        C{lease.release()}.

        @raise ForeignLease: C{lease} is not of this pool.
        """

    def discard(lease: ILease, *, destinationBad: bool = False) -> None:
        """
        C{lease.discard(destinationBad=destinationBad)}.

        @raise ForeignLease: C{lease} is not of this pool.
        """

    def detach(lease: ILease) -> Any:
        """
        C{lease.detach()}.

        @raise ForeignLease: C{lease} is not of this pool.
        """

    def condemn(number: int, *, destinationBad: bool = False) -> None:
        """
        Let a connection not be leased again, nor with C{destinationBad} any other to
        its server; for observers, which know connections by number.
        """

    def start() -> None:
        """
        Keep C{minIdle} idle connections from now on, as the first acquire does, and
        find out by dials of the pool's own when a destination that is down is there
        again.  A pool that was closed begins anew.
        """

    def whenReady(count: int | None = None, timeout: float | None = None) -> Deferred[None]:
        """
        Start, and wait for connections.

        @param count: how many live ones, dialled for that; C{minIdle} if left out.
        @return: fires when there are so many; fails with L{AcquireTimeout}
            after C{timeout} seconds, or L{PoolClosed}.
        @raise ValueError: C{count} is more than C{maxSize}.
        """

    def explain() -> str:
        """
        @return: one paragraph: what the pool is doing, and why somebody waits.
        """

    def reconfigure(**changes: Any) -> None:
        """
        Change limits, all of them or none.

        @raise ValueError: for a limit out of range; nothing has changed then.
        """

    def purge(over: float = 0.0) -> None:
        """
        Let no connection that exists now be leased again: close what is idle
        or being dialled now, what is leased when it comes back.

        @param over: seconds; replace them one after another within these instead.
        @raise ValueError: C{over} is no number of seconds.
        """

    def pause(*, queue: bool = True) -> None:
        """
        Hand out and dial nothing until L{resume}.

        @param queue: acquires wait; else they fail with L{PoolPaused}.
        """

    def resume() -> None:
        """
        Go on.
        """

    def drain(timeout: float | None = None) -> Deferred[None]:
        """
        Accept no acquire, serve those that wait, wait for the leases, close.

        @param timeout: seconds after which leased connections are aborted.
        @return: fires when no connection is left; never fails.
        """

    def close(timeout: float | None = None) -> Deferred[None]:
        """
        Fail who waits, close what is idle, give leases C{timeout} to come back
        and abort them then.  Idempotent.

        @param timeout: seconds; C{closeTimeout} if left out.
        @return: fires when no connection is left; never fails.
        """


class IPoolable(Interface):
    """
    The questions that a pool may ask a protocol.  The pool adapts each new protocol to this
    interface; a protocol that does not care needs none.
    """

    def isReusable() -> bool:
        """
        @return: whether the connection is quiescent: no request without its
            answer, no state that the next lease would inherit.  Asked on every
            return, also after an exception or cancellation.
        @raise DestinationBad: the server is of no use; L{reset} and L{validate} may
            fail with it, too.
        """

    def reset() -> Deferred[None] | None:
        """
        Clean up after a lease, within C{resetTimeout}.  Failing closes the
        connection.
        """

    def validate() -> bool | Deferred[bool]:
        """
        See whether the peer still answers, within C{resetTimeout}.  Asked of
        connections idle for C{validateAfterIdle}, and in the background of those
        idle for C{keepaliveTime}.
        """

    def idleDataReceived(data: bytes) -> bool:
        """
        Bytes came while nobody had a lease.

        @return: L{True}: that is all right (and they are consumed); else the
            connection is closed.
        """

    def goodbye() -> Deferred[None] | None:
        """
        Say what the protocol says before it hangs up, within C{closeTimeout}.
        The pool hangs up when this is done.  Asked only of connections that nobody
        is in the middle of using.
        """


class IPoolObserver(Interface):
    """
    Sees what a pool does.  Exceptions are logged and change nothing.
    """

    def connectionCreated(pool: Any, number: int) -> None:
        """
        A dial begins.
        """

    def connectionReady(pool: Any, number: int, seconds: float) -> None:
        """
        A dial succeeded after C{seconds}.
        """

    def connectionClosed(pool: Any, number: int, reason: str) -> None:
        """
        A socket is gone: C{idle}, C{lifetime}, C{uses}, C{peer}, C{data},
        C{stale}, C{discarded}, C{failed}, C{elided}, C{pool}, …
        """

    def acquireStarted(pool: Any) -> None:
        """
        Somebody acquires.
        """

    def acquired(pool: Any, number: int, seconds: float) -> None:
        """
        Somebody got a lease after C{seconds}.
        """

    def acquireFailed(pool: Any, error: Exception, seconds: float) -> None:
        """
        Somebody got an error after C{seconds}.
        """

    def released(pool: Any, number: int, seconds: float) -> None:
        """
        A lease ended, in whatever way, after C{seconds}.
        """

    def leakSuspected(pool: Any, number: int, where: str, seconds: float) -> None:
        """
        The lease acquired at C{where} is held longer than C{leakThreshold}.
        """

    def poolPurged(pool: Any, generation: int) -> None:
        """
        The pool was purged for the C{generation}th time.
        """

    def poolPaused(pool: Any) -> None:
        """
        The pool was paused.
        """

    def poolResumed(pool: Any) -> None:
        """
        The pool was resumed.
        """

    def poolClosed(pool: Any) -> None:
        """
        The pool is closed.
        """


class IReloadable(Interface):
    """
    Something that read files which an operator may renew: certificates, targets.
    """

    def reload() -> None:
        """
        Read them again, for work that begins from now on.

        @raise Exception: its text is one line; what was read before stays in
            use.
        """


# -- transfer ----------------------------------------------------------------


class ILiveTransfers(Interface):
    """
    A service whose transfers an operator may watch.
    """

    def liveTransfers(limit: int) -> Sequence[LiveTransfer]:
        """
        @return: what is under way now, oldest first, at most C{limit} of it.
        """


class IRecentTransfers(Interface):
    """
    A service whose last transfers an operator may look at.
    """

    def recentTransfers() -> Sequence[EndedTransfer]:
        """
        @return: the last files and the last refusals, of each kind at most fifty,
            the newest first.
        """


class IPartial(Interface):
    """
    A file that is being received: private, never under its final name.
    """

    held: Sequence[tuple[int, int]] = Attribute(
        "Sorted, disjoint C{(start, end)} byte ranges that have been written."
    )
    durable: Sequence[tuple[int, int]] = Attribute(
        "The part of C{held} that the last L{checkpoint} made safe against a restart."
    )
    digests: Mapping[int, bytes] = Attribute(
        "Block number to the digest recorded for it: one mapping, which L{record}, L{discard} "
        "and damage that is found change."
    )
    epoch: int = Attribute("The number of offers that it was taken over from, one by one.")
    checkpointSeconds: float | None = Attribute(
        "The time between two checkpoints that nobody waits for, where they cost more than a "
        "local disk's; L{None} to leave that to the receiver."
    )

    def write(offset: int, data: bytes | bytearray | memoryview) -> Deferred[None] | None:
        """
        Store C{data} at C{offset}.

        C{data} is borrowed: the store is done with it when this returns
        L{None} or its Deferred fires.

        @param offset: any offset not held.
        @return: L{None} when done, or a Deferred that means "pause until I
            fire"; it fails with L{TransferError}.
        @raise NoSpace, QuotaExceeded, StoreError: see the class.
        """

    def record(block: int, digest: bytes) -> None:
        """
        Note that the bytes of C{block} were verified against C{digest}.  From
        then on the block is immutable.
        """

    def discard(start: int, end: int) -> Sequence[tuple[int, int]]:
        """
        Forget the bytes from C{start} to C{end}: they were wrong and come again.

        @return: other ranges that had to be forgotten with them; they left C{held} and
            C{digests}, and must come again too.
        """

    def settled() -> Deferred[Sequence[tuple[int, int]]]:
        """
        Wait until what an earlier process held was read again and hashed.

        Writing elsewhere goes on meanwhile; L{commit} waits for it too.

        @return: fires with the ranges that were damaged: they left C{held} and
            C{digests} and must come again.  At once with none for a partial
            that was not resumed after a restart.
        """

    def checkpoint() -> Deferred[None]:
        """
        Make what is held and recorded survive a restart (and, at the levels
        C{data} and C{full}, a power cut); then C{durable} says so.
        """

    def suspend() -> Deferred[None]:
        """
        Checkpoint, and let go of descriptors and locks; the partial can be
        opened again.  Without a resume key this is L{abort}.
        """

    def commit(root: bytes | None) -> Deferred[Receipt]:
        """
        Publish the file under its final name, in the order the store promises.

        Closes the partial to writes and waits for those under way.  After a
        L{NoSpace} the partial is open again; after any other failure it can
        only be suspended or aborted.

        @param root: the root digest that was verified; L{None} when the
            protocol has none (classic), and the receipt says C{unverified}.
        @return: fires with the receipt once the asked durability is reached;
            fails with L{Exists}, L{NoSpace}, L{SyncFailed}, L{StoreError}.
        """

    def abort() -> Deferred[None]:
        """
        Remove every trace.  Idempotent; never fails.
        """


class IUploadPartial(IPartial):
    """
    A partial of a store that provides L{IUploadStore} too.  It comes back after a restart
    with every byte that was recorded, those of an unfinished block included.
    """

    stump: Stump | None = Attribute(
        "The unfinished block that was recorded last; L{None} if there is none."
    )

    def record(block: int, digest: bytes, end: int | None = None) -> None:
        """
        As L{IPartial.record}.

        @param end: where the block is not finished, the offset in the file at which the
            bytes end that C{digest} is of; this replaces the C{stump}.
        """

    def read(start: int, end: int) -> Deferred[bytes]:
        """
        @return: fires with bytes that are held; at most a MiB should be asked for at once.
            Fails with L{StoreError}.
        """

    def declare(offer: Offer) -> None:
        """
        Put C{offer} in the place of the one that this was opened for, because its size,
        metadata or SHA-256 became known; the next L{checkpoint} or L{commit} makes that
        survive a restart.  Everything else of it is the same.

        @raise TooLarge: more bytes than the declared size have come.
        @raise QuotaExceeded, NoSpace: so much may not be reserved.
        @raise StoreError: the size was known.
        """


class ISparsePartial(IUploadPartial):
    """
    A partial of a store that provides L{ISparseStore} too.
    """

    def skip(start: int, end: int) -> Deferred[None] | None:
        """
        Have zeros from C{start} to C{end}, none of which is held, without writing them: the
        file has a hole there, as far as the file system makes any.

        @return: as L{IPartial.write}.
        @raise StoreError: as L{IPartial.write}.
        """


class IPartialHolder(Interface):
    """
    The transfer that opens a partial.
    """

    def ready() -> Deferred[None]:
        """
        Wait until the transfer may begin; called once, before anything is opened for it.

        @return: fails with a L{TransferError}, or because it was cancelled: then nothing
            is opened, and C{open} fails in the same way.
        """

    def evicted() -> None:
        """
        Let go of the partial, which may not be open yet: a newer offer of the same sender
        takes it over.  One that is being published goes on.
        """


class IAuthenticator(Interface):
    """
    Says who a sender is.
    """

    takesPasswords: bool = Attribute("Whether it can check a password.")

    def certified(transport: Any) -> Identity | None:
        """
        @return: whose verified client certificate C{transport} has; L{None} if
            it is nobody's.
        """

    def password(transport: Any, user: str, secret: bytes) -> Deferred[Identity]:
        """
        @param transport: of the sender.
        @return: whose password it is; fails with L{AuthenticationFailed},
            which does not tell whether the user exists.
        """


class IFileStore(Interface):
    """
    A place for received files.
    """

    def open(offer: Offer, holder: IPartialHolder | None = None) -> Deferred[IPartial | Receipt]:
        """
        Create the partial for C{offer}, or resume the one that the same
        principal began with the same resume key.

        Reserves the declared size; makes no name and no directory.

        A partial that is open in this process is taken over: its holder is told, and this
        waits until it has let go of the partial.  Where there is no holder its writes under
        way end first, later ones and its commit fail with L{ConflictTakeover}.

        Only whole blocks that were recorded come back after a restart, so a
        protocol without block digests resumes at nothing.

        @param holder: told when a newer offer takes over.  What has no resume key is taken
            over by nobody, and waits for C{ready} all the same.
        @return: a partial; or the receipt, when this principal already
            finished a file with this offer's key.  Fails with a
            L{TransferError}; with L{Busy} while another process has it open, unless the
            store takes it over from that process too.
        """

    def put(offer: Offer, data: bytes, root: bytes | None) -> Receipt | Deferred[Receipt]:
        """
        Store a whole small file: the same as open, write and commit, without
        a partial that could be resumed.

        @return: the receipt, at once where nothing has to be waited for.
        @raise TransferError: as L{IPartial.commit} fails.
        """

    def trouble() -> str | None:
        """
        @return: why new offers are refused now, one line for readiness checks
            and operators (the directory was moved away, the disk is full);
            L{None} if they are not.  Cheap.
        """

    def stat(name: RelativeName) -> Deferred[FileStat | None]:
        """
        @return: what is published under C{name}; L{None} if nothing is.
        """

    def foresee(offer: Offer, root: bytes | None, ahead: int, whole: bool) -> Deferred[str]:
        """
        Say what would become of a file, and change nothing: a dry run.

        @param root: of its content; L{None} if the sender has not said it.
        @param ahead: bytes of other files that would be stored before it.
        @param whole: whether it would come by L{put}, else by L{open}.
        @return: fires with C{stored}; with C{duplicate}, for the same content is
            there; or with C{compare}, if that depends on C{root}, which is
            L{None}.  Fails with a L{TransferError}, as C{put}, C{open} or
            C{commit} would.
        """

    def partials(principal: str | None = None) -> Deferred[list[PartialInfo]]:
        """
        @return: the partials of one principal, or all.
        """

    def delete(info: PartialInfo) -> Deferred[None]:
        """
        Remove a suspended partial.
        """

    def close() -> Deferred[None]:
        """
        Let go of every descriptor; partials in use are suspended.
        """


class IBatchStore(Interface):
    """
    The part that an L{IFileStore} provides too if it stores many small files in less time than
    as many single ones.
    """

    def putAll(
        files: Sequence[SmallFile],
    ) -> list[Receipt | Failure] | Deferred[list[Receipt | Failure]]:
        """
        Store whole small files, as L{IFileStore.put} does each of them.  Those of one name are
        decided in order, and one that fails does so alone.

        @param files: at least one.
        @return: for each its receipt, or why it is not stored.
        @raise TransferError: why none of them was stored; the caller may try them one by one.
        """


class IUploadStore(Interface):
    """
    The part that an L{IFileStore} provides too if uploads in several requests, as in tus,
    can go on in it: C{open} then gives an L{IUploadPartial}.  To a store that does not
    provide this, the web door sends whole files only.
    """

    keptSeconds: float | None = Attribute(
        "Seconds that a suspended partial is kept at least; L{None} if it stays for ever."
    )

    def find(
        principal: str, resumeKey: bytes, key: bytes, network: str = ""
    ) -> Deferred[Offer | Receipt | None]:
        """
        Find an upload.  Nothing is opened, and nobody is taken over.

        @param network: as in the offer.
        @return: fires with the receipt, for as long as receipts are kept, if the file was
            published; else with the offer of the partial, as it was opened or declared last
            but without its identity; else with L{None}.  Fails with L{Busy} while another
            process has the partial open.
        """


class ISharedUploadStore(IUploadStore):
    """
    The part that an L{IUploadStore} provides too if others share it, to whom the next request
    about an upload may come.
    """

    def begin(offer: Offer) -> Deferred[None]:
        """
        Let the others find an upload that has no byte yet.

        @param offer: new, and with a resume key.
        @return: fires when they do; fails as C{open}.
        """

    def settle() -> Deferred[None]:
        """
        Take no more bytes of unfinished files, and let the others have what came: their
        senders are about to lose their connections, and will ask the others at once.

        @return: fires when that is done, or cannot be; never fails.
        """


class ISparseStore(IUploadStore):
    """
    The part that an L{IFileStore} provides too if it stores files with holes: C{open} then
    gives an L{ISparsePartial}.  Senders are told by a capability; to a store that does not
    provide this, holes are sent as zeros.
    """


class IReadableStore(Interface):
    """
    The part that an L{IFileStore} provides too if what is published in it can be read: regular
    files and directories, and nothing else; no link is followed, and what is the store's own
    is not there.  Whoever may not read a name learns as much as of one that nobody has.
    """

    def listing(directory: RelativeName | None, after: str, limit: int) -> Deferred[Listing]:
        """
        Read a page of a directory.

        @param directory: L{None} for the root.
        @param after: only names that are sorted after this one, by their bytes; empty for all.
        @param limit: entries of the page, at least 1.
        @return: fails with L{NotFound} if there is no such directory.
        """

    def read(name: RelativeName, start: int, end: int) -> Deferred[FileRange]:
        """
        Read a part of a file.  Nothing stays open.

        @param start: offset of its first byte; from the end of the file on, there are none.
        @param end: offset after its last one; at most 4 MiB are read at once.
        @return: fails with L{NotFound} if there is no such file, with L{Busy} while
            somebody writes to it.
        """


class IUpdateStore(Interface):
    """
    The part that an L{IFileStore} provides too if it can tell a sender what it has stored
    already.  Senders are told by a capability.
    """

    def compare(principal: str, files: Sequence[AskedFile], digest: str) -> Deferred[bytes]:
        """
        Compare files with what is published.

        Only that is told which C{principal} itself has stored and nobody changed since; of
        everything else not even that it exists.

        @param digest: the algorithm of their roots.
        @return: fires with a byte for each, one of C{DIFFERS} (or missing), C{SAME} and
            C{UNTOLD} of L{connpool.transfer.records}.
        """


class INotingStore(Interface):
    """
    The part that an L{IFileStore} provides too if it remembers, across restarts, of which files
    a program is still to be told.
    """

    def receivedOutbox(more: Callable[[], None]) -> Any:
        """
        Open the receipts that a program is still to be told about, once for a store.

        @param more: called when there may be something to take that the store was not asked
            to publish by this process.
        @return: an object with C{take()}, which gives the next receipt after something that
            tells it from others, or L{None}; C{told(that)}; and C{close()}.
        @raise StartFailed: another process has them; one line.
        """

    def placeOf(receipt: Receipt) -> Mapping[str, str]:
        """
        @return: what a program is told beside the receipt, so that it finds the file.
        """


class IInspectablePartial(IPartial):
    """
    A partial of a store that provides L{IInspectableStore} too.
    """

    def openContent() -> Deferred[int]:
        """
        Open what was written, before it is committed.

        @return: fires with a descriptor, at its beginning and for reading only; the caller
            closes it.  Fails with a L{TransferError}, as C{commit} would if not all is there.
        """


class IInspectableStore(Interface):
    """
    The part that an L{IFileStore} provides too if a file can be read before it is published:
    C{open} then gives an L{IInspectablePartial}.  Only such stores take judges.
    """


class IRememberingStore(Interface):
    """
    The part that an L{IFileStore} provides too if it keeps in memory what it would else look
    for on disk.
    """

    rememberedBytes: int = Attribute("The memory that this takes, about, in bytes.")


class IDirectoryStore(Interface):
    """
    The part that an L{IFileStore} provides too if it has directories of its own, which may be
    empty and have a time.  Senders are told by a capability; a store that does not provide this
    is sent files only.
    """

    def makeDirectory(
        name: RelativeName, modified: int | None, durability: str, make: bool = True
    ) -> Deferred[DirectoryMade | None]:
        """
        Make a directory, and those above it, unless it is there; and give it its time.

        The time is set also if the directory was there: a run that goes on where another
        one was interrupted finds those that it made itself.  Where the file system does
        not let us (the directory belongs to somebody else) the time stays as it is.

        @param modified: nanoseconds since the epoch; L{None} to leave it.
        @param durability: one of C{DURABILITIES}: at C{full} the directory and its names
            survive a power cut once this fires.
        @param make: whether it may be made; if not and it is missing, this fires with L{None}.
        @return: fires when it is there; fails with L{Exists} if something else than a
            directory has the name, or is in the way, and as L{IPartial.commit} fails.
        """


class IObservedStore(Interface):
    """
    The part that an L{IFileStore} provides too if it has numbers to show.
    """

    sources: Sequence[IStatsSource] = Attribute("Sources of numbers; shown with the receiver's.")


class IFileStoreFactory(Interface):
    """
    A plugin that makes stores: C{--store NAME[:ARGUMENTS]}.
    """

    name: str = Attribute("The word that chooses it.")
    description: str = Attribute("One line for operators.")
    takes: AbstractSet[str] = Attribute(
        "Of C{quota}, C{keepPartials}, C{onReceived} and C{beforePublish}: those that the stores "
        "heed; all heed C{names}.  Those that take C{onReceived} provide L{INotingStore}, those "
        "that take C{beforePublish} L{IInspectableStore}."
    )

    def make(arguments: str) -> Callable[[Any, StoreSettings], IFileStore]:
        """
        Called while options are read, perhaps as root and only to check them:
        opens nothing.

        @param arguments: what follows the first colon; empty for nothing.
        @return: opens the store when the service starts; called with the
            reactor and the receiver's settings.  It may raise
            L{connpool.errors.StartFailed}.
        @raise ValueError: for arguments it cannot use; its text is one line and
            names the remedy.
        """


class ITransferListener(Interface):
    """
    Told about every file that a reception sees.

    Called in the reactor, in the order things happen to one file; what it
    raises is logged and changes nothing.
    """

    def offered(offer: Offer, peer: str) -> None:
        """
        A sender wants to store a file with a name we take.
        """

    def refused(name: str, peer: str, why: Exception) -> None:
        """
        An offer was turned away.

        @param name: fit to be displayed.
        """

    def started(offer: Offer, peer: str) -> None:
        """
        A partial is open; bytes may come.
        """

    def progressed(offer: Offer, peer: str, done: int) -> None:
        """
        Bytes came; at most once a second for each transfer.

        @param done: bytes held so far, those of an earlier connection included.
        """

    def published(receipt: Receipt) -> None:
        """
        A file has its final name, and the durability that was asked for.
        """

    def failed(offer: Offer, peer: str, why: BaseException) -> None:
        """
        A transfer ended without publishing.
        """


class ITransferJudge(ITransferListener):
    """
    A listener that is asked, too, before a file gets its name.
    """

    def beforePublish(
        offer: Offer, peer: str, content: Callable[[], int | Deferred[int]]
    ) -> Deferred[None] | None:
        """
        Judge a file of which all bytes are here and verified.  A sender whose answer got lost
        may have the same file judged again.

        @param content: gives a descriptor at the beginning of the content, open for reading
            only, or a Deferred of one; the caller closes it.
        @return: L{None}, or a Deferred that fires when it may be published.
        @raise HookRefused: it is not published, and its sender is told the text.  After any
            other failure, too, it is not published; then the sender tries again.
        """


class ITransferListenerFactory(Interface):
    """
    A plugin that makes listeners: C{--listener NAME[:ARGUMENTS]}.
    """

    name: str = Attribute("The word that chooses it.")
    description: str = Attribute("One line for operators.")

    def make(arguments: str) -> ITransferListener:
        """
        Called while options are read, perhaps as root and only to check them:
        opens nothing.

        @param arguments: what follows the first colon; empty for nothing.
        @raise ValueError: for arguments it cannot use; its text is one line and
            names the remedy.
        """


# -- datagram ----------------------------------------------------------------


class IDatagramResponder(Interface):
    """
    Answers datagrams.

    The port it stands behind applies the limits: a datagram that a responder
    sees may be answered, and an answer longer than its request is dropped
    except as C{excess} allows.
    """

    wants: AbstractSet[str] = Attribute(
        "Of C{time}, C{ttl} and C{tos}: what the kernel shall say about each datagram."
    )
    excess: int = Attribute(
        "How many bytes an answer may be longer than its request, once a second "
        "for each IPv4 /24 and IPv6 /64; 0 for responders with nothing to negotiate."
    )
    symmetricPorts: AbstractSet[int] = Attribute(
        "Source ports that are answered although programs that answer use them: the "
        "standard's own, for a protocol that tells an answer from a request; the port "
        "that it listens on is then one too.  Empty for all others."
    )
    refused: Mapping[str, int] = Attribute(
        "Datagrams that got no answer from C{respond}, by reason; only grows."
    )

    def respond(data: bytes, info: DatagramInfo) -> bytes | None:
        """
        @param info: valid only during the call.
        @return: the answer; L{None} for none, and the reason is counted.
        """


class IReflector(IDatagramResponder):
    """
    A responder that mostly sends back what came: its answers need not pass
    through it.
    """

    def reflects(firstBytes: bytes) -> bool:
        """
        @param firstBytes: the first byte of each datagram of a batch; any byte
            for an empty one.
        @return: whether each of them is its own answer, so that C{respond} need
            not be asked.
        """


class IDatagramResponderFactory(Interface):
    """
    A plugin that makes responders: C{--protocol NAME[:ARGUMENTS]}.
    """

    name: str = Attribute("The word that chooses it.")
    description: str = Attribute("One line for C{--help}.")

    def make(arguments: str) -> IDatagramResponder:
        """
        @param arguments: what follows the first colon; empty for nothing.
        @raise ValueError: for arguments it cannot use; its text is one line and
            names the remedy.
        """
