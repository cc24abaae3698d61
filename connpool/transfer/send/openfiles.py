"""
Programs that may still write to a file.

Theory of operation
===================
A read lease (C{F_SETLEASE}, fcntl(2)) is granted only while no process has the
file open for writing or mapped from such a descriptor.  It is asked for and
given back at once: a lease that is held blocks writers.  Only C{EAGAIN} means
that there is a writer.  A lease proves that there is none on the local file
systems of L{_PROVEN}; elsewhere a granted lease, and everywhere any other
refusal, leave the question open.

Then C{/proc/*/fd} and C{/proc/*/map_files} are read.  A writer that they show
is a writer.  That they show none is an answer only if they show everything:
every process of the machine, and a file system that only its processes write
to.  Behind FUSE and network file systems are writers that no C{/proc} shows.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterable, Sequence

import attrs

from connpool.transfer.syscalls import filesystemType

__all__ = [
    "Answer",
    "Writers",
    "findWriters",
    "ignoreLeaseSignals",
    "openForWriting",
    "writersOf",
]

_ON_DISK = "bcachefs btrfs exfat ext2 ext3 ext4 f2fs jfs nilfs2 ntfs3 reiserfs vfat xfs zfs"
#: Local file systems whose leases know every writer.
_PROVEN = frozenset((*_ON_DISK.split(), "ramfs", "rootfs", "tmpfs"))
#: Local file systems that grant a lease although somebody has the file mapped.
_LOCAL = _PROVEN | {"overlay"}

#: fcntl(2): the signal that tells of a lease that is to be given back.
_F_SETSIG = 10
#: C{/proc/self/ns/pid} of the machine itself, not of a container.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC

_WRITABLE = 0o200


class Writers(enum.Enum):
    """
    The writers of one file.
    """

    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"


@attrs.frozen
class Answer:
    """
    The answer for one file.

    @ivar why: if it is not known, the reason, for an operator.
    """

    writers: Writers
    why: str = ""


_NONE, _SOME = Answer(Writers.NONE), Answer(Writers.SOME)


def ignoreLeaseSignals() -> None:
    """
    Ignore C{SIGIO} unless the program has a use for it: a writer that comes
    while a lease is held sends it, and by default it ends the process.
    """
    with contextlib.suppress(ValueError):  # not in the main thread: F_SETSIG does for it
        if signal.getsignal(signal.SIGIO) is signal.SIG_DFL:
            signal.signal(signal.SIGIO, signal.SIG_IGN)


def findWriters(fds: Sequence[int]) -> list[Answer]:
    """
    Find out whether anybody may write to some files now.

    @param fds: descriptors that were opened with C{O_RDONLY | O_NONBLOCK}.
    """
    types: dict[int, str] = {}
    answers = []
    for fd in fds:
        device = os.fstat(fd).st_dev
        if device not in types:
            types[device] = filesystemType(fd)
        answers.append(_askLease(fd, types[device]))
    if any(answer.writers is Writers.UNKNOWN for answer in answers):
        seen, whole = openForWriting()
        for number, fd in enumerate(fds):
            if answers[number].writers is Writers.UNKNOWN:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) in seen:
                    answers[number] = _SOME
                elif whole and types[status.st_dev] in _LOCAL:
                    answers[number] = _NONE
    return answers


def writersOf(paths: Sequence[str]) -> list[Answer | OSError]:
    """
    Find the writers of files by their names; every one takes a descriptor meanwhile.

    @return: for each its answer, or why it cannot be opened.
    """
    opened: list[int | Answer | OSError] = []
    try:
        for path in paths:
            try:
                opened.append(
                    os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                )
            except OSError as e:
                # somebody holds a write lease, as Samba does for a file it has open
                opened.append(_SOME if e.errno == errno.EAGAIN else e)
        answers = iter(findWriters([fd for fd in opened if isinstance(fd, int)]))
        return [next(answers) if isinstance(fd, int) else fd for fd in opened]
    finally:
        for fd in opened:
            if isinstance(fd, int):
                os.close(fd)


def _askLease(fd: int, filesystem: str) -> Answer:
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except (OSError, AttributeError) as e:
        number = getattr(e, "errno", None)
        if number == errno.EAGAIN:
            return _SOME
        if number == errno.EACCES:
            return Answer(Writers.UNKNOWN, "it belongs to another user, and CAP_LEASE is missing")
        return Answer(Writers.UNKNOWN, f"there are no leases on {filesystem}")
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    if filesystem in _PROVEN:
        return _NONE
    return Answer(Writers.UNKNOWN, f"leases on {filesystem} do not know every writer")


def openForWriting() -> tuple[set[tuple[int, int]], bool]:
    """
    Read what every process has open or mapped.

    @return: device and inode of the files that may be written to; and whether
        nothing was hidden from us.
    """
    found: set[tuple[int, int]] = set()
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
        whole = os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE and "1" in processes
    except OSError:
        return found, False
    for process in processes:
        for kind in ("fd", "map_files"):
            where = f"/proc/{process}/{kind}"
            try:
                whole = _addWritable(where, os.listdir(where), found) and whole
            except (FileNotFoundError, ProcessLookupError):
                pass  # it ended
            except OSError:
                whole = False
    return found, whole


def _addWritable(where: str, names: Iterable[str], found: set[tuple[int, int]]) -> bool:
    whole = True
    for name in names:
        link = f"{where}/{name}"
        try:
            # the mode of the link is how the file was opened
            if os.lstat(link).st_mode & _WRITABLE:
                status = os.stat(link)
                if stat.S_ISREG(status.st_mode):
                    found.add((status.st_dev, status.st_ino))
        except (FileNotFoundError, ProcessLookupError):
            pass  # closed meanwhile
        except OSError:
            whole = False
    return whole
