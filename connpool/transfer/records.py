"""
The values that pass between protocols, reception and stores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from connpool.frozen import frozen

if TYPE_CHECKING:
    from connpool.transfer.identities import Identity
    from connpool.transfer.names import RelativeName

__all__ = [
    "ASKABLE_DURABILITIES",
    "DIFFERS",
    "DURABILITIES",
    "IF_EXISTS",
    "SAME",
    "UNTOLD",
    "AskedFile",
    "DirectoryMade",
    "EndedTransfer",
    "FileRange",
    "FileStat",
    "ListedEntry",
    "Listing",
    "LiveTransfer",
    "Offer",
    "PartialInfo",
    "Receipt",
    "SmallFile",
    "StoreSettings",
    "Stump",
]

#: What a receipt may promise, weakest first: survives the death of the
#: process; contents synced before the name; contents, name and directories synced.
DURABILITIES = ("none", "data", "full")
#: What may be asked for: C{best} is the strongest that the file system reaches.
ASKABLE_DURABILITIES = ("best", *DURABILITIES)

#: What is told of a file that a sender asks about: it is missing, or another one is there; it
#: is there; nothing is told.
DIFFERS, SAME, UNTOLD = range(3)

#: What happens at publish when the name is taken.
IF_EXISTS = ("rename", "replace", "refuse", "skip")


@frozen
class Offer:
    """
    A file that a sender wants to store, after names and policy were checked.

    @ivar name: where it shall go.
    @ivar size: bytes, or L{None} if not known before the end.
    @ivar transferId: 32 hexadecimal digits, the same in client output, log,
        receipt and hook; it grants nothing and is never part of a path.
    @ivar principal: whose file it is: a user, a certificate, or C{anonymous}.
    @ivar identity: the entry of the operator's table for the principal, if there is one.
    @ivar key: idempotence key (32 bytes): the same content under the same key gets the
        same receipt.
    @ivar resumeKey: secret (32 bytes) that entitles to resume the partial.
    @ivar modified: modification time, nanoseconds since the epoch.
    @ivar executable: the source had an exec bit.
    @ivar digest: algorithm of the block digests (C{sha256}, C{blake3},
        C{xxh3}), or L{None} where the protocol has none.
    @ivar blockSize: bytes to a block digest.
    @ivar ifExists: one of L{IF_EXISTS}.
    @ivar durability: one of L{ASKABLE_DURABILITIES}.
    @ivar protocol: C{classic}, C{native}, …
    @ivar metadata: text that the protocol keeps with the file until it is published.
    @ivar sha256: hexadecimal SHA-256 of all bytes, once it is known.
    @ivar network: the part of the principal's senders that it came from; the partials of
        each such part are counted, and evicted, apart from the others'.
    @ivar evicts: whether older suspended partials may make way for it.
    @ivar dataBytes: bytes of it that are data, about, if its sender says that it has holes;
        L{None}: all.
    @ivar holeBytes: bytes of it that came as holes, once all have come.
    @ivar savedBytes: bytes of it that did not come, because the others were compressed.
    """

    name: RelativeName
    transferId: str
    size: int | None = None
    principal: str = "anonymous"
    identity: Identity | None = None
    key: bytes | None = None
    resumeKey: bytes | None = attrs.field(default=None, repr=False)
    modified: int | None = None
    executable: bool = False
    digest: str | None = None
    blockSize: int = 1 << 20
    ifExists: str = "rename"
    durability: str = "full"
    protocol: str = "native"
    metadata: str = ""
    sha256: str | None = None
    network: str = ""
    evicts: bool = True
    dataBytes: int | None = None
    holeBytes: int = 0
    savedBytes: int = 0


@attrs.frozen
class StoreSettings:
    """
    The options of a receiver that its store heeds.

    @ivar names: one of C{PROFILES}.
    @ivar quota: bytes that the unfinished transfers of one principal may take; L{None} for no
        limit.
    @ivar keepPartials: seconds that a suspended partial is kept.
    """

    names: str = "portable"
    quota: int | None = None
    keepPartials: float = 7 * 86400.0


@attrs.frozen
class Stump:
    """
    The part of an unfinished block that was recorded: all bytes from its beginning to C{end}.

    @ivar block: its number.
    @ivar end: the offset in the file at which the part ends.
    @ivar digest: of the bytes of the part.
    """

    block: int
    end: int
    digest: bytes


@attrs.frozen(eq=False)
class SmallFile:
    """
    A whole file that is to be stored.

    @ivar data: its content; the store is done with it when it has answered.
    @ivar root: of the content; L{None} where the protocol has none.
    """

    offer: Offer
    data: bytes | memoryview
    root: bytes | None


@attrs.frozen
class AskedFile:
    """
    A file that a sender has, and asks about.

    @ivar name: as in the offer; L{None} for one that is not taken.
    @ivar size: bytes.
    @ivar modified: nanoseconds since the epoch; L{None} if only C{root} counts.
    @ivar root: of its content, with the block size of L{chooseBlockSize}; empty: the times count.
    """

    name: RelativeName | None
    size: int
    modified: int | None
    root: bytes


@frozen
class Receipt:
    """
    The account of a file: the one schema for the wire, C{--receipt}, hooks,
    listeners and logs.

    @ivar transferId: as in the offer.
    @ivar name: the name it was published under, relative to the store.
    @ivar wanted: the name that was asked for.
    @ivar size: bytes.
    @ivar status: C{stored}; or C{duplicate}, the same content was already there.
    @ivar durability: the level reached, one of L{DURABILITIES}.
    @ivar filesystem: the type it lies on, C{ext4} or C{tmpfs} or C{memory}, …
    @ivar integrity: C{verified} against the sender's digests, or C{unverified}.
    @ivar digest: the algorithm, or L{None}.
    @ivar root: hexadecimal root digest, or L{None}.
    @ivar protocol: C{classic}, C{native}, …
    @ivar principal: as in the offer.
    @ivar finished: wall-clock time of publishing, seconds since the epoch.
    @ivar sha256: hexadecimal SHA-256 of all bytes, or L{None} if nobody asked for it.
    @ivar holeBytes: bytes of C{size} that were sent as holes, not as content.
    @ivar savedBytes: bytes that compression kept off the network.
    """

    transferId: str
    name: str
    wanted: str
    size: int
    status: str
    durability: str
    filesystem: str
    integrity: str
    digest: str | None
    root: str | None
    protocol: str
    principal: str
    finished: float
    sha256: str | None = None
    holeBytes: int = 0
    savedBytes: int = 0

    def answers(self, size: int | None, root: bytes | None = None) -> bool:
        """
        Tell whether this, which was given for a key, is a receipt for the content that comes
        under that key now.

        @param size: bytes of that content; L{None} if unknown: then there is nothing to
            compare, and it is not answered.
        @param root: of that content, where it is known; it covers the size.
        """
        return self.size == size if root is None else self.root == root.hex()


@attrs.frozen
class DirectoryMade:
    """
    A directory that a sender asked for.

    @ivar made: L{False} if it was there.
    @ivar durability: the level reached, one of L{DURABILITIES}.
    @ivar filesystem: the type it lies on.
    @ivar finished: wall-clock time, seconds since the epoch.
    """

    made: bool
    durability: str
    filesystem: str
    finished: float


@attrs.frozen
class LiveTransfer:
    """
    A transfer under way, as somebody watches it.  Its rate follows from two of
    these.

    @ivar transferId: as in the offer.
    @ivar name: the file's name, fit to be displayed.
    @ivar peer: the other side.
    @ivar direction: C{in} or C{out}.
    @ivar protocol: C{classic}, C{native}, …
    @ivar size: bytes, or L{None} if not known before the end.
    @ivar done: bytes received, or on the way out, sent; what was held before included.
    @ivar phase: C{moving} its bytes, or C{publishing}.
    @ivar slowedBy: the thing that is waited for now: C{peer} or C{disk}.
    """

    transferId: str
    name: str
    peer: str
    direction: str
    protocol: str
    size: int | None
    done: int
    phase: str
    slowedBy: str


@attrs.frozen
class EndedTransfer:
    """
    A transfer that is over, as somebody looks at it later.

    @ivar when: wall-clock time, seconds since the epoch.
    @ivar name: the file's name, fit to be displayed; empty if it never came to one.
    @ivar size: bytes stored, or those that came; L{None} for a refusal.
    @ivar peer: the sender.
    @ivar result: C{stored}, C{duplicate}, C{skipped}, C{failed} or C{refused}.
    @ivar durability: the level reached, one of L{DURABILITIES}.
    @ivar transferId: as in the offer, if it came that far.
    @ivar why: the reason of a failure or refusal: its code, a colon and a text.
    """

    when: float
    name: str
    size: int | None
    peer: str
    result: str
    durability: str | None
    transferId: str | None
    why: str = ""


@attrs.frozen
class FileStat:
    """
    A published file.

    @ivar size: bytes.
    @ivar modified: nanoseconds since the epoch.
    """

    size: int
    modified: int


@attrs.frozen
class ListedEntry:
    """
    A name in a directory.

    @ivar name: its last component.
    @ivar directory: whether it is a directory, else a regular file.
    @ivar size: bytes; 0 of a directory.
    @ivar modified: nanoseconds since the epoch; 0 if it is not known, as of directories that
        are nothing but a beginning of names.
    """

    name: str
    directory: bool
    size: int
    modified: int


@attrs.frozen
class Listing:
    """
    A page of a directory.

    @ivar entries: sorted by the bytes of their names.
    @ivar more: whether there are names after the last one.
    """

    entries: tuple[ListedEntry, ...]
    more: bool


@attrs.frozen
class FileRange:
    """
    A part of a published file.

    @ivar data: its bytes.
    @ivar size: of the file.
    @ivar modified: nanoseconds since the epoch.
    @ivar version: 16 bytes that change when the content may have changed.
    """

    data: bytes = attrs.field(repr=False)
    size: int
    modified: int
    version: bytes


@attrs.frozen
class PartialInfo:
    """
    A partial as an operator lists it.

    @ivar size: declared bytes, L{None} if unknown.
    @ivar received: bytes held.
    @ivar allocated: bytes it takes on disk.
    @ivar active: whether a transfer is using it now.
    @ivar changed: wall-clock time of the last write, seconds since the epoch.
    """

    partialId: str
    principal: str
    name: str
    size: int | None
    received: int
    allocated: int
    active: bool
    changed: float
