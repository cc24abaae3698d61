"""
The shares of the disk that transfers may still take.

Theory of operation
===================
A transfer reserves what it announced before its first byte, so that transfers
that would fill the disk together are refused while the others finish.  A
reservation counts against the principal's quota in full, and against free space
for what is not yet written, since the rest shows in C{statvfs} itself.  A
suspended partial counts what it takes on disk, as the file system says.

Several processes share a store.  Each publishes its reservations in a file of
its own and keeps that file locked: a file whose lock can be had belongs to a
process that died, and is removed.  Files are made, read and decided upon under
one lock, which is held while those few files are read and for nothing else:
what suspended partials take is counted before, and so may be a moment old.

If somebody takes the directory or a file of ours away, new ones are made before
the next reservation.

The name of a process's file says on which machine it runs, and by which mount it sees the
directory.  Machines that share a directory over a network file system share neither what the
kernel appends to the log of receipts nor what free space is, and nothing fences one whose lock
is lost.  So a process does not start beside a live one of another machine.

What cannot be told to the others is not promised; what cannot be taken back
is, the next time that something can be told.

Everything here runs on the reactor's thread.

Small files that arrive in one piece reserve nothing; they are checked against
what is free now.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator

import msgspec

from connpool.errors import NoInodes, NoSpace, QuotaExceeded, StartFailed, TransferError
from connpool.transfer.stores.directories import Followed
from connpool.transfer.syscalls import NEW, NO_INODES, Syscalls, asTransferError, outOfInodes

__all__ = ["STEP_BYTES", "Reservation", "Reservations", "Shortage", "Space"]

#: Bytes that a transfer of unknown size reserves at a time, at most: as many as it has
#: taken before, so that a small one needs little.
STEP_BYTES = 64 << 20
FIRST_STEP_BYTES = 1 << 20
#: The free-space floor unless the operator sets one: the smaller of these.
FLOOR_BYTES = 1 << 30
FLOOR_SHARE = 0.05

_OPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def machineOf(syscalls: Syscalls, fd: int) -> str:
    """
    Return a word for this machine and the mount that C{fd} is on.

    The kernel's own, since locks are the kernel's: containers of one machine share both.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            kernel = file.read().strip()
    except OSError:
        kernel = socket.gethostname()
    mount = syscalls.fstat(fd).st_dev
    return hashlib.sha256(f"{kernel} {mount}".encode()).hexdigest()[:16]


class Space:
    """
    Free space above the floor.

    @param fd: any descriptor on the file system.
    @param minFree: bytes that are never given away; L{None} for the default.
    @param seconds: monotonic.
    @ivar floor: bytes.
    """

    #: Seconds and bytes after which C{statvfs} is asked again.
    ASK_SECONDS = 0.5
    DRIFT_BYTES = 16 << 20

    def __init__(
        self, syscalls: Syscalls, fd: int, minFree: int | None, seconds: Callable[[], float]
    ) -> None:
        self._sys = syscalls
        self._fd = fd
        self._seconds = seconds
        status = syscalls.fstatvfs(fd)
        size = status.f_blocks * status.f_frsize
        self.floor = (
            min(FLOOR_BYTES, int(size * FLOOR_SHARE)) if minFree is None else max(0, minFree)
        )
        self._free = 0
        self._noInodes = False
        self._spent = 0
        self._asked = -self.ASK_SECONDS

    def free(self) -> int:
        """
        Return bytes above the floor, asked now.
        """
        status = self._sys.fstatvfs(self._fd)
        self._free = status.f_bavail * status.f_frsize - self.floor
        self._noInodes = not status.f_favail and outOfInodes(status)
        self._spent = 0
        self._asked = self._seconds()
        return self._free

    def spend(self, size: int, promised: int) -> bool:
        """
        Tell whether a small file fits beside C{promised} bytes; ask the kernel now and
        then only.
        """
        if self._spent > self.DRIFT_BYTES or self._seconds() - self._asked >= self.ASK_SECONDS:
            self.free()
        if self._spent + size + promised > self._free or self._noInodes:
            return False
        self._spent += size
        return True

    def outOfInodes(self) -> bool:
        """
        Tell whether no file more can be made, whatever its size; asks the
        kernel now and then only.
        """
        if self._seconds() - self._asked >= self.ASK_SECONDS:
            self.free()
        return self._noInodes


class Shortage(Exception):
    """
    A transfer may not have what it needs.

    @ivar missing: bytes that would have to be given back first.
    @ivar why: what its sender is told.
    """

    def __init__(self, missing: int, why: TransferError) -> None:
        super().__init__(missing, why)
        self.missing = missing
        self.why = why


class Reservation:
    """
    The bytes that one transfer may write.

    @ivar size: bytes reserved.
    @ivar unwritten: bytes of it that are not on disk yet.
    @ivar quota: bytes that the principal may take.
    @ivar sparse: whether less was announced to be written than C{size}.
    """

    __slots__ = ("principal", "quota", "size", "sparse", "unwritten")

    def __init__(self, principal: str, quota: int | None, *, sparse: bool = False) -> None:
        self.principal = principal
        self.quota = quota
        self.sparse = sparse
        self.size = self.unwritten = 0


class _Totals(msgspec.Struct):
    """
    Bytes that are reserved and not written, and bytes reserved, by principal.
    """

    promised: int = 0
    taken: dict[str, int] = msgspec.field(default_factory=dict)


class Reservations:
    """
    The reservations of this process, and the sums of the others.

    @param directory: the one that all processes share.
    @param quota: bytes that live and suspended transfers of one principal may
        take, unless it has a quota of its own; L{None} for no limit.
    @raise StartFailed: a process of another machine has the directory.
    """

    def __init__(
        self, syscalls: Syscalls, directory: Followed, space: Space, quota: int | None
    ) -> None:
        self._sys = syscalls
        self._directory = directory
        self._space = space
        self._quota = quota
        #: Bytes reserved at once for a file whose size is not known, at most.
        self.step = STEP_BYTES
        self._totals = _Totals()
        self._machine = machineOf(syscalls, directory.fd)
        self._name = f"process-{secrets.token_hex(8)}-{self._machine}"
        self._moved = False
        self._lock, self._own = self._begin(first=True)

    def reserve(
        self,
        principal: str,
        quota: int | None,
        size: int | None,
        written: int,
        suspended: Callable[[], int],
        data: int | None = None,
    ) -> Reservation:
        """
        Reserve the bytes of a transfer.

        @param quota: the principal's own; L{None} for the store's.
        @param size: bytes the transfer may come to take, those written
            included; L{None} if nobody knows.
        @param written: bytes that it takes already.
        @param suspended: counts the bytes that the principal's suspended
            partials take, this one left out; called only where there is a quota.
        @param data: bytes of C{size} that are no holes; L{None}: all.
        @raise Shortage: because the principal may not take so much
            (L{QuotaExceeded}), or the disk has not so much (L{NoSpace}).
        @raise NoInodes: because no file more can be made.
        """
        size = written if size is None else size
        due = size if data is None else min(size, data)
        reservation = Reservation(
            principal, self._quota if quota is None else quota, sparse=due < size
        )
        others = 0 if reservation.quota is None else suspended()
        self._take(reservation, size, max(0, due - written), others)
        return reservation

    def foresee(
        self,
        principal: str,
        quota: int | None,
        size: int | None,
        ahead: int,
        suspended: int,
        *,
        whole: bool,
        data: int | None = None,
    ) -> None:
        """
        Tell what L{reserve} would say, and reserve nothing.

        @param ahead: bytes that others are going to take of the disk before.
        @param suspended: bytes of partials that would be removed if need be.
        @param whole: whether it comes in one piece, which no quota is about.
        @param data: as in L{reserve}.
        @raise QuotaExceeded, NoSpace: why it would not be taken.
        """
        reservation = Reservation(principal, self._quota if quota is None else quota)
        if whole:
            reservation.quota = None
        if size is None:
            size = self._step(reservation)
        self._follow()
        with _locked(self._sys, self._lock):
            others = self._others()
        try:
            # what is suspended may go: it is not counted, and it is room
            due = size if data is None else min(size, data)
            self._check(reservation, size, due + ahead - suspended, 0, others)
        except Shortage as short:
            raise short.why from None

    def _step(self, reservation: Reservation) -> int:
        quota = reservation.quota
        step = min(self.step, max(FIRST_STEP_BYTES, reservation.size))
        return step if quota is None else min(step, quota // 16)

    def grow(self, reservation: Reservation, size: int) -> None:
        """
        Reserve at least C{size} bytes more for a file whose size is not known; for one with
        holes, which has its size, space on disk.

        @raise QuotaExceeded, NoSpace: if it may not.
        """
        step = max(self._step(reservation), size)
        counts = not reservation.sparse
        try:
            try:
                self._take(reservation, step * counts, step, 0)
            except Shortage:
                # what is there may be enough
                self._take(reservation, size * counts, size, 0)
        except Shortage as short:
            raise short.why from None
        except OSError as error:
            raise asTransferError(error, "reserving space") from None

    def cover(self, reservation: Reservation, size: int, held: int) -> None:
        """
        Have enough for C{size} bytes that are about to be written.

        @param held: bytes that the transfer holds.
        @raise QuotaExceeded, NoSpace: as L{grow}.
        """
        if reservation.sparse:
            short = size - reservation.unwritten
        else:
            short = held + size - reservation.size
        if short > 0:
            self.grow(reservation, short)

    def wrote(self, reservation: Reservation, size: int) -> None:
        """
        Note that C{size} bytes more are on disk.
        """
        size = min(size, reservation.unwritten)
        reservation.unwritten -= size
        self._totals.promised -= size

    def trouble(self) -> str | None:
        """
        Tell that the disk is full, in one line; L{None} if it is not.
        """
        if self._space.outOfInodes():
            return "the disk has no inodes left, though it may have space; remove files from it"
        if self._space.spend(1, 0):
            return None
        return f"the disk has less than {self._space.floor} bytes free; remove something from it"

    def full(self) -> NoSpace:
        """
        Tell why a small file does not fit.
        """
        if self._space.outOfInodes():
            return NoInodes(NO_INODES)
        return NoSpace("the receiver's disk is full; try again when there is space")

    def fits(self, size: int) -> bool:
        """
        Tell whether a small file fits beside what this process promised.
        """
        return self._space.spend(size, self._totals.promised)

    def release(self, reservation: Reservation) -> None:
        """
        The transfer is over, or suspended.  Never fails.
        """
        self._add(reservation, -reservation.size, -reservation.unwritten)
        with contextlib.suppress(OSError), _locked(self._sys, self._lock):
            self._publish()

    def close(self) -> None:
        """
        Leave no trace in the shared directory.
        """
        self._sys.remove(self._name, self._directory.fd)
        self._sys.close(self._own)
        self._sys.close(self._lock)

    def _begin(self, *, first: bool = False) -> tuple[int, int]:
        """
        Open the lock that all share, and a file of our own.

        @param first: whether this is the start of the process, which may be refused.
        """
        sys, directory = self._sys, self._directory.fd
        with contextlib.ExitStack() as undo:
            lock = sys.open("lock", _LOCK_FLAGS, 0o600, dir_fd=directory)
            undo.callback(sys.close, lock)
            # or somebody would take it for a dead one's before it is locked
            with _locked(sys, lock):
                if first:
                    self._refuseMachines()
                own = sys.open(self._name, NEW, 0o600, dir_fd=directory)
                undo.callback(sys.close, own)
                sys.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            undo.pop_all()
        return lock, own

    def _follow(self) -> None:
        """
        Be where the other processes look.
        """
        self._moved |= self._directory.changed()
        status = self._sys.fstat
        if not self._moved and status(self._lock).st_nlink and status(self._own).st_nlink:
            return
        self._sys.remove(self._name, self._directory.fd)
        older = self._lock, self._own
        self._lock, self._own = self._begin()
        self._moved = False
        for fd in older:
            self._sys.close(fd)

    def _take(self, reservation: Reservation, size: int, unwritten: int, suspended: int) -> None:
        try:
            self._follow()
        except FileNotFoundError:
            self._directory.doubt()
            self._follow()
        with _locked(self._sys, self._lock):
            others = self._others()
            self._check(reservation, size, unwritten, suspended, others)
            self._add(reservation, size, unwritten)
            try:
                self._publish()
            except OSError:
                self._add(reservation, -size, -unwritten)
                with contextlib.suppress(OSError):
                    self._publish()  # half of it may have been written
                raise

    def _check(
        self,
        reservation: Reservation,
        size: int,
        unwritten: int,
        suspended: int,
        others: list[_Totals],
    ) -> None:
        promised = self._totals.promised + sum(totals.promised for totals in others)
        free = self._space.free() - promised
        if self._space.outOfInodes():
            raise NoInodes(NO_INODES)
        missing = unwritten - free
        principal, quota = reservation.principal, reservation.quota
        if quota is not None:
            taken = suspended + sum(
                totals.taken.get(principal, 0) for totals in (self._totals, *others)
            )
            if taken + size > quota:
                why = (
                    f"{taken} of {quota} bytes of quota are taken and {size} more are"
                    " needed; finish or remove unfinished transfers first"
                )
                if size > quota:
                    why = f"{size} bytes are needed; the receiver's quota for one sender is {quota}"
                raise Shortage(max(missing, taken + size - quota), QuotaExceeded(why))
        if missing > 0:
            raise Shortage(
                missing,
                NoSpace(
                    f"the receiver has {max(0, free)} bytes to give and {unwritten} are needed;"
                    " try again when there is space"
                ),
            )

    def _add(self, reservation: Reservation, size: int, unwritten: int) -> None:
        reservation.size += size
        reservation.unwritten += unwritten
        self._totals.promised += unwritten
        left = self._totals.taken.pop(reservation.principal, 0) + size
        if left:
            self._totals.taken[reservation.principal] = left

    def _refuseMachines(self) -> None:
        for name, _ in self._live():
            machine = name.split("-")[2:]  # earlier releases have not said it
            if machine and machine != [self._machine]:
                raise StartFailed(
                    "another machine has this directory, over a network file system; only one at"
                    " a time can (if it has died, its lock ends in a minute or two): stop that"
                    " one, or let both use --store s3, see docs/scale.rst"
                )

    def _others(self) -> list[_Totals]:
        found: list[_Totals] = []
        for _, fd in self._live():
            with contextlib.suppress(msgspec.DecodeError):
                found.append(msgspec.json.decode(self._sys.pread(fd, 16 << 20, 0), type=_Totals))
        return found

    def _live(self) -> Iterator[tuple[str, int]]:
        """
        Name and descriptor of the file of each other process that lives; those of dead ones
        are removed.
        """
        for name in self._sys.listdir(self._directory.fd):
            if not name.startswith("process-") or name == self._name:
                continue
            fd = self._sys.openIfThere(name, _OPEN_FLAGS, self._directory.fd)
            if fd is None:
                continue
            try:
                self._sys.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield name, fd
            else:
                self._sys.remove(name, self._directory.fd)  # its process died
            finally:
                self._sys.close(fd)

    def _publish(self) -> None:
        data = msgspec.json.encode(self._totals)
        self._sys.writeAll(self._own, data, 0)
        self._sys.ftruncate(self._own, len(data))


@contextlib.contextmanager
def _locked(syscalls: Syscalls, fd: int) -> Iterator[None]:
    syscalls.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        syscalls.flock(fd, fcntl.LOCK_UN)
