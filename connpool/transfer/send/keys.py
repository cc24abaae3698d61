"""
The memory of a sender: a secret, and the runs that have not ended.

Theory of operation
===================
Two keys go with a file, and nobody else can compute them:

  - the I{resume key} entitles to the receiver's partial: an HMAC over
    receiver, path, device, inode and name, keyed with a secret that is made once
    (C{$XDG_STATE_HOME/connpool/secret}).
  - the I{idempotence key} makes a repeated file harmless when its answer was
    lost.  It is the same for the same unchanged file (a small one: with the same
    content, which a memory mapping changes without its times) within a I{run}, and a run
    lasts until everything in it was answered: its own secret lies in a file that
    is removed then.  So a sender that was killed goes on with the same keys, and
    one that is told to send a file once more, does.  It is a keyed BLAKE3, which
    takes a sixth of the time of an HMAC; a run that version 0.1.0 began goes on
    with an HMAC, and has a secret without a mark.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from connpool.errors import SourceError

__all__ = ["HeldRun", "Run", "SenderKeys", "stateDirectory"]

_SECRET_BYTES = 32
#: Follows the secret of a run whose keys are keyed BLAKE3.
_BLAKE3 = b"\x02"
_FINGERPRINT = struct.Struct(">QQQqq")
#: By the number of parts: it, and their lengths.
_LENGTHS = [struct.Struct(f">{parts + 1}I") for parts in range(8)]


def stateDirectory() -> Path:
    """
    C{$XDG_STATE_HOME/connpool}.

    @raise FileNotFoundError: there is none: no such variable, and no home.
    """
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if home.startswith("~"):
        raise FileNotFoundError(errno.ENOENT, "there is no home directory")
    return Path(home) / "connpool"


class Run:
    """
    Sending to one receiver, until everything was answered.

    @param continued: whether a process began it that has ended since.
    @ivar resumable: whether a later process will know the keys.
    """

    def __init__(
        self,
        destination: str,
        secret: bytes,
        own: bytes,
        lock: int | None,
        path: str,
        continued: bool = False,
    ) -> None:
        self._destination = os.fsencode(destination)
        self._secret = secret
        self._own = own[:_SECRET_BYTES]
        self._keys = _blake3 if own[_SECRET_BYTES:] == _BLAKE3 else _hmac
        self._lock = lock
        self._path = path
        self._again = secrets.token_bytes(16) if continued else b""
        self._salts: Mapping[bytes, bytes] = {}

    @classmethod
    def ephemeral(cls, destination: str = "") -> Run:
        """
        A run that only this process knows of.
        """
        return cls(destination, secrets.token_bytes(_SECRET_BYTES), _newSecret(), None, "")

    @property
    def resumable(self) -> bool:
        return self._lock is not None

    def resumeKey(self, path: bytes, status: os.stat_result, name: bytes) -> bytes:
        """
        Compute the key of the partial of a file.
        """
        where = struct.pack(">QQ", status.st_dev, status.st_ino)
        return _hmac(self._secret, b"resume", self._destination, path, where, name)

    def key(
        self,
        path: bytes,
        status: os.stat_result,
        name: bytes,
        root: bytes = b"",
        *,
        afresh: bool = False,
    ) -> bytes:
        """
        Compute the idempotence key of a file as it is now.

        @param root: of its content, where that was read already.
        @param afresh: whether a process that goes on with the run of another one takes keys
            of its own: for a receiver that would not tell an old receipt from a new one.
        """
        what = status.st_dev, status.st_ino, status.st_size
        times = status.st_mtime_ns, status.st_ctime_ns
        try:
            fingerprint = _FINGERPRINT.pack(*what, *times)
        except struct.error:
            fingerprint = _FINGERPRINT.pack(*what, *map(_wrapped, times))
        more = [part for part in (root, self._again * afresh) if part]
        key = self._keys(self._own, b"key", self._destination, path, fingerprint, name, *more)
        salt = self._salts.get(path)
        return key if salt is None else self._keys(self._own, b"renewed", key, salt)

    def end(self, answered: bool) -> None:
        """
        @param answered: every file is stored, or was refused for good.
        """
        lock, self._lock = self._lock, None
        if lock is not None:
            if answered:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            os.close(lock)


class SenderKeys:
    """
    @param directory: private to the user; made when first needed.
        L{stateDirectory} if left out.
    """

    _directory: Path

    def __init__(self, directory: Path | None = None) -> None:
        self._given = directory

    def begin(self, destination: str) -> Run:
        """
        Begin a run, or go on with one that a process left unfinished.

        @param destination: the receiver, always spelled the same.
        @return: a run that is not L{Run.resumable} if there is no destination
            or the directory cannot be written to.
        """
        if not destination:
            # two receivers must not see the same keys
            return Run.ephemeral()
        try:
            self._directory = self._given or stateDirectory()
            secret = self._secret()
            lock, path, own, continued = self._claim(destination)
        except OSError:
            return Run.ephemeral(destination)
        return Run(destination, secret, own, lock, path, continued)

    def _secret(self) -> bytes:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / "secret"
        try:
            secret = path.read_bytes()
        except FileNotFoundError:
            # whole or not at all, also if two begin at once
            made = self._directory / f"secret.{secrets.token_hex(8)}"
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(fd, secrets.token_bytes(_SECRET_BYTES))
                os.fsync(fd)
                with contextlib.suppress(FileExistsError):
                    os.link(made, path)
            finally:
                os.close(fd)
                os.unlink(made)
            secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise SourceError(f"{path} is damaged; remove it, and partial files start anew")
        return secret

    def _claim(self, destination: str) -> tuple[int, str, bytes, bool]:
        """
        An unfinished run that no living process has, or a new one.

        @return: descriptor, path and secret of the run; and whether it is an older one.
        """
        runs = self._directory / "runs"
        runs.mkdir(mode=0o700, exist_ok=True)
        prefix = hashlib.sha256(destination.encode()).hexdigest()[:32]
        for path in sorted(runs.glob(f"{prefix}.*")):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    own = os.read(fd, 64)
                    known = len(own) == _SECRET_BYTES or own[_SECRET_BYTES:] == _BLAKE3
                    if known and os.fstat(fd).st_nlink:
                        return fd, str(path), own, True
                except OSError:
                    pass
                os.close(fd)
        path = runs / f"{prefix}.{secrets.token_hex(8)}"
        own = _newSecret()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, own)
        except OSError:
            os.unlink(path)
            os.close(fd)
            raise
        return fd, str(path), own, False


class HeldRun(Run):
    """
    A run that goes on after the sending has ended: its holder has more to do
    before the keys may be forgotten, and ends C{run} itself.

    @param salts: absolute path to random bytes, for files that get another key
        although they look the same: their content was stored under the old one
        and has changed since.
    """

    def __init__(self, run: Run, salts: Mapping[bytes, bytes] | None = None) -> None:
        vars(self).update(vars(run))
        # its keys outlive processes by intent: what was delivered once is not again
        self._again = b""
        self._salts = salts or {}

    def begin(self, destination: str) -> HeldRun:
        """
        Stand for L{SenderKeys.begin}.
        """
        return self

    def end(self, answered: bool) -> None:
        """
        Do nothing: the holder ends the run.
        """


def _newSecret() -> bytes:
    return secrets.token_bytes(_SECRET_BYTES) + _BLAKE3


# each part with its length: no two lists of parts read the same


def _hmac(secret: bytes, *parts: bytes) -> bytes:
    text = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return hmac.digest(secret, text, "sha256")


def _blake3(secret: bytes, *parts: bytes) -> bytes:
    lengths = _LENGTHS[len(parts)].pack(len(parts), *map(len, parts))
    return blake3(b"".join((lengths, *parts)), key=secret).digest()


def _wrapped(nanoseconds: int) -> int:
    """
    The last 64 bits of a time, which may lie beyond them: before 1678, after 2262.
    """
    return (nanoseconds + (1 << 63)) % (1 << 64) - (1 << 63)
