"""
The control parts of C{cpt/1}: typed MessagePack arrays with bounds.

Arrays, not maps: no keys, so no duplicate keys.  Every field has a type and a
bound, so there is nothing a decoder could recurse into.  Fields at the end may
be missing and then have their default; more fields than are defined here are
an error.  What a later version adds comes as an C{extension}.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from connpool.errors import ProtocolError, Skipped, TransferError
from connpool.transfer.wire.content import Hole, Packed
from connpool.transfer.wire.fields import (
    Array,
    AskedDurability,
    BlockNumber,
    BlockSize,
    DigestBytes,
    Durability,
    Extension,
    Extensions,
    Id,
    IfExists,
    Line,
    Message,
    Name,
    Nanoseconds,
    Secret,
    Size,
    Word,
)
from connpool.transfer.wire.frames import MAX_SMALL_BYTES, Frame, Type, frame
from connpool.transfer.wire.readmessages import (
    Content,
    ListingMessage,
    ListMessage,
    ReadMessage,
)
from connpool.transfer.wire.update import Ask, Have

if TYPE_CHECKING:
    from connpool.transfer.identities import Identity
    from connpool.transfer.records import Receipt

__all__ = [
    "BATCH_FILES",
    "DATA_BYTES",
    "MESSAGES",
    "ROOT",
    "TIME",
    "Accept",
    "Ack",
    "Auth",
    "Cancel",
    "Commit",
    "Data",
    "Digests",
    "Directory",
    "Entry",
    "Error",
    "Extension",
    "Goaway",
    "Hello",
    "Join",
    "Joined",
    "OfferMessage",
    "Ping",
    "Progress",
    "Put",
    "Puts",
    "Ready",
    "ReceiptMessage",
    "ReceiverLimits",
    "Reject",
    "Repair",
    "Revoke",
    "carryTime",
    "dataBytesIn",
    "dataBytesOf",
    "decode",
    "encode",
    "extensionOf",
    "pingOf",
    "receiptFrame",
    "rejectFrame",
    "slowIn",
    "timeOf",
]
#: Name of the extension of a dry C{OFFER} that says the root of the content,
#: and, empty, of the C{ACCEPT} that asks for it.
ROOT = "root"
#: Name of the extension of C{OFFER} and C{PUT} that has a modification time
#: beyond 64 bits of nanoseconds: seconds and nanoseconds, 12 bytes.
TIME = "time"
#: Name of the extension of C{OFFER} that says how many bytes of a file with holes are data.
DATA_BYTES = "data"
#: Files of one C{PUTS}.
BATCH_FILES = 512


class ReceiverLimits(Array, frozen=True):
    """
    The limits of a receiver.

    @ivar largest: bytes of a file; L{None} for no limit.
    @ivar small: bytes of a file that may come by C{PUT}.
    @ivar inflightBytes: bytes of C{PUT}s not acknowledged, at most.
    @ivar inflightFiles: the same in files.
    @ivar streams: C{OFFER}s open at once.
    @ivar idle: seconds of silence after which a connection is ended.
    """

    largest: Size | None
    small: Annotated[int, Meta(ge=0, le=1 << 20)]
    inflightBytes: Annotated[int, Meta(ge=1 << 20, le=2**63 - 1)]
    inflightFiles: Annotated[int, Meta(ge=16_384, le=2**32 - 1)]
    streams: Annotated[int, Meta(ge=1, le=65_535)]
    idle: Annotated[int, Meta(ge=1, le=86_400)]


class Hello(Message, frozen=True):
    """
    The first frame of both sides.

    @ivar limits: of the receiver; L{None} from the sender.
    @ivar methods: ways to authenticate that the receiver takes.
    """

    versions: Annotated[tuple[Annotated[int, Meta(ge=1, le=65_535)], ...], Meta(max_length=16)]
    software: Word
    capabilities: Annotated[tuple[Word, ...], Meta(max_length=32)]
    digests: Annotated[tuple[Word, ...], Meta(max_length=8)]
    nonce: Secret
    limits: ReceiverLimits | None = None
    methods: Annotated[tuple[Word, ...], Meta(max_length=8)] = ()
    extensions: Extensions = ()


class Auth(Message, frozen=True):
    """
    The identity of the sender, and the hash of the two C{HELLO}s as it saw them.
    """

    transcript: Secret
    method: Word
    user: Annotated[str, Meta(max_length=256)] = ""
    secret: Annotated[bytes, Meta(max_length=4096)] = b""
    extensions: Extensions = ()

    def __repr__(self) -> str:
        return f"Auth({self.method!r}, {self.user!r})"


class Ready(Message, frozen=True):
    """
    The session exists.
    """

    transcript: Secret
    session: Id
    ticket: Secret
    principal: Annotated[str, Meta(max_length=256)]
    extensions: Extensions = ()


class Join(Message, frozen=True):
    """
    This connection carries data for the session that has C{ticket}.
    """

    ticket: Secret
    extensions: Extensions = ()


class Joined(Message, frozen=True):
    extensions: Extensions = ()


class Ping(Message, frozen=True):
    """
    A sign of life, or as C{PONG} its answer.
    """

    token: Size
    extensions: Extensions = ()


def pingOf(slow: str) -> Ping:
    """
    Say that small files wait.

    @param slow: the thing that they wait for; empty for nothing.
    """
    return Ping(0, (Extension("slow", False, slow.encode()),) if slow else ())


def slowIn(ping: Ping) -> str:
    """
    @return: the thing that small files wait for, by C{ping}; empty for nothing.
    """
    for extension in ping.extensions:
        if extension.name == "slow":
            return extension.value[:64].decode("utf-8", "replace")
    return ""


class Goaway(Message, frozen=True):
    """
    Begin nothing new here; what runs may end.
    """

    reason: Line
    extensions: Extensions = ()


class Error(Message, frozen=True):
    """
    The session is over.
    """

    code: Word
    detail: Line
    extensions: Extensions = ()


class Put(Message, frozen=True):
    """
    A whole small file.
    """

    transferId: Id
    name: Name
    key: Secret
    root: DigestBytes
    modified: Nanoseconds | None = None
    executable: bool = False
    ifExists: IfExists = ""
    durability: AskedDurability = "full"
    extensions: Extensions = ()


class Entry(Array, frozen=True):
    """
    One file of L{Puts}; the fields are those of L{Put}.

    @ivar size: its bytes of the data part.
    """

    transferId: Id
    name: Name
    key: Secret
    root: DigestBytes
    size: Annotated[int, Meta(ge=0, le=MAX_SMALL_BYTES)]
    modified: Nanoseconds | None = None
    executable: bool = False


class Puts(Message, frozen=True):
    """
    Whole small files, one after the other in the data part.  The first has the stream of
    the frame, the others those that follow.  Only for a receiver that has the capability
    C{puts}.
    """

    ifExists: IfExists
    durability: AskedDurability
    entries: Annotated[tuple[Entry, ...], Meta(min_length=1, max_length=BATCH_FILES)]
    extensions: Extensions = ()


class OfferMessage(Message, frozen=True):
    """
    C{OFFER}: a file that comes in C{DATA} frames.

    @ivar ifExists: the rule for a name that is taken; empty for the receiver's own.
    @ivar dry: only asks what would be done.
    """

    transferId: Id
    name: Name
    key: Secret
    size: Size | None
    blockSize: BlockSize
    resumeKey: Secret | None = None
    modified: Nanoseconds | None = None
    executable: bool = False
    ifExists: IfExists = ""
    durability: AskedDurability = "full"
    dry: bool = False
    extensions: Extensions = ()


class Accept(Message, frozen=True):
    """
    The file is taken; send it.

    @ivar epoch: how often this partial changed hands.
    @ivar ranges: ranges of blocks that are held, in the data part.
    """

    state: Literal["new", "resume", "dry"]
    epoch: Size
    ranges: Annotated[int, Meta(ge=0, le=65_536)] = 0
    extensions: Extensions = ()


class Reject(Message, frozen=True):
    """
    The file will not be taken, or not any more.
    """

    code: Word
    retryable: bool
    detail: Line
    extensions: Extensions = ()


class Data(Message, frozen=True):
    offset: Size
    extensions: Extensions = ()


class Digests(Message, frozen=True):
    """
    Digests of the blocks from C{first} on, in the data part.
    """

    first: BlockNumber
    extensions: Extensions = ()


class Repair(Message, frozen=True):
    """
    Blocks that are wrong or missing, as u32 in the data part: send them again.
    """

    extensions: Extensions = ()


class Revoke(Message, frozen=True):
    """
    Blocks that the receiver holds and the source does not have (any more).
    """

    extensions: Extensions = ()


class Commit(Message, frozen=True):
    size: Size
    root: DigestBytes
    extensions: Extensions = ()


class Progress(Message, frozen=True):
    """
    The state of a file at the receiver.

    @ivar phase: its work now.
    @ivar durable: bytes that survive a restart of the receiver.
    @ivar slow: the thing that it waits for; empty if nothing.
    """

    phase: Literal["receive", "verify", "publish"]
    durable: Size
    slow: Word = ""
    extensions: Extensions = ()


class Ack(Message, frozen=True):
    """
    Small files that are stored under the name they asked for.

    @ivar streams: (first, count) pairs.
    @ivar finished: milliseconds since the epoch.
    """

    streams: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=1, le=2**32 - 1)], Size], ...], Meta(max_length=4096)
    ]
    durability: Durability
    filesystem: Word
    finished: Size
    extensions: Extensions = ()


class ReceiptMessage(Message, frozen=True):
    """
    C{RECEIPT}: a file is stored; the fields are those of a receipt.
    """

    status: Literal["stored", "duplicate"]
    name: Name
    size: Size
    durability: Durability
    filesystem: Word
    integrity: Literal["verified", "unverified"]
    digest: Word | None
    root: DigestBytes | None
    finished: Size
    extensions: Extensions = ()


class Directory(Message, frozen=True):
    """
    A directory, after all that is in it was answered.  Only for a receiver that has the
    capability C{directories}.

    @ivar modified: the time that it has in the source.
    """

    name: Name
    modified: Nanoseconds | None = None
    durability: AskedDurability = "full"
    extensions: Extensions = ()


class Cancel(Message, frozen=True):
    """
    The sender gives this file up.

    @ivar keep: the partial may be resumed.
    """

    code: Word
    keep: bool
    extensions: Extensions = ()


MESSAGES: dict[Type, type[Message]] = {
    Type.HELLO: Hello,
    Type.AUTH: Auth,
    Type.READY: Ready,
    Type.JOIN: Join,
    Type.JOINED: Joined,
    Type.PING: Ping,
    Type.PONG: Ping,
    Type.GOAWAY: Goaway,
    Type.ERROR: Error,
    Type.PUT: Put,
    Type.OFFER: OfferMessage,
    Type.ACCEPT: Accept,
    Type.REJECT: Reject,
    Type.DATA: Data,
    Type.DIGESTS: Digests,
    Type.REPAIR: Repair,
    Type.REVOKE: Revoke,
    Type.COMMIT: Commit,
    Type.PROGRESS: Progress,
    Type.ACK: Ack,
    Type.RECEIPT: ReceiptMessage,
    Type.CANCEL: Cancel,
    Type.DIRECTORY: Directory,
    Type.PUTS: Puts,
    Type.HOLE: Hole,
    Type.LIST: ListMessage,
    Type.LISTING: ListingMessage,
    Type.READ: ReadMessage,
    Type.CONTENT: Content,
    Type.ASK: Ask,
    Type.HAVE: Have,
    Type.PACKED: Packed,
}

_TIME = struct.Struct(">qI")
_COUNT = struct.Struct(">Q")
_decoders = {kind: msgspec.msgpack.Decoder(message) for kind, message in MESSAGES.items()}
_encode = msgspec.msgpack.Encoder().encode


def carryTime(nanoseconds: int | None) -> tuple[int | None, tuple[Extension, ...]]:
    """
    @return: C{modified} of a message, and the extension without which it would
        not be this time: not every file system stops where 64 bits do.
    """
    if nanoseconds is None or -(2**63) <= nanoseconds < 2**63:
        return nanoseconds, ()
    seconds, rest = divmod(nanoseconds, 10**9)
    nearest = min(max(nanoseconds, -(2**63)), 2**63 - 1)
    return nearest, (Extension(TIME, False, _TIME.pack(seconds, rest)),)


def timeOf(message: Put | OfferMessage) -> int | None:
    """
    @return: the time that L{carryTime} was given.
    """
    for extension in message.extensions:
        if extension.name == TIME and len(extension.value) == _TIME.size:
            seconds, rest = _TIME.unpack(extension.value)
            return int(seconds * 10**9 + min(rest, 10**9 - 1))
    return message.modified


def dataBytesOf(count: int) -> Extension:
    """
    Say in an C{OFFER} that no more than C{count} bytes are data.
    """
    return Extension(DATA_BYTES, False, _COUNT.pack(count))


def dataBytesIn(message: OfferMessage) -> int | None:
    """
    @return: the bytes that L{dataBytesOf} was given; L{None} if nothing is said.
    """
    value = extensionOf(message, DATA_BYTES)
    if value is None or len(value) != _COUNT.size:
        return None
    return int(_COUNT.unpack(value)[0])


def decode(received: Frame) -> Any:
    """
    The message in a frame.

    @raise ProtocolError: whatever is wrong with it.
    """
    try:
        message = _decoders[received.type].decode(received.control)
    # msgspec passes UnicodeDecodeError and, in principle, others through
    except Exception as e:
        raise ProtocolError(f"{received.type.name} cannot be read: {_oneLine(e)}") from None
    for extension in message.extensions:  # type: ignore[attr-defined]  # every message has them
        if extension.critical:
            raise ProtocolError(
                f"{received.type.name} needs the extension {extension.name!r}, unknown here"
            )
    return message


def encode(kind: Type, stream: int, message: Message, length: int = 0) -> bytes:
    """
    Header and control part of a frame whose data part has C{length} bytes.
    """
    return frame(kind, stream, _encode(message), length)


def rejectFrame(number: int, why: TransferError) -> bytes:
    """
    Say that the file of stream C{number} is not taken, or not any more.
    """
    detail = " ".join(str(why).split())[:1024]
    skipped = (Extension("skipped", False, b""),) if isinstance(why, Skipped) else ()
    return encode(Type.REJECT, number, Reject(why.code, why.retryable, detail, skipped))


def receiptFrame(
    number: int, receipt: Receipt, identity: Identity | None, there: bytes | None = None
) -> bytes:
    """
    Say that the file of stream C{number} is stored, with its name as the sender may use it:
    the directory of a sender is the operator's business.

    @param there: value of the extension C{earlier}, for a receipt that an earlier offer got.
    """
    name = receipt.name
    if identity is not None and identity.directory is not None:
        name = name.removeprefix(identity.directory.path + "/")
    message = ReceiptMessage(
        receipt.status,  # type: ignore[arg-type]  # records have it as text
        name.encode("utf-8"),
        receipt.size,
        receipt.durability,  # type: ignore[arg-type]  # records have it as text
        receipt.filesystem,
        receipt.integrity,  # type: ignore[arg-type]  # records have it as text
        receipt.digest,
        bytes.fromhex(receipt.root) if receipt.root is not None else None,
        int(receipt.finished * 1000),
        () if there is None else (Extension("earlier", False, there),),
    )
    return encode(Type.RECEIPT, number, message)


def extensionOf(message: Any, name: str) -> bytes | None:
    """
    @return: the value of an extension of C{message}; L{None} if it has none of that name.
    """
    return next((each.value for each in message.extensions if each.name == name), None)


def _oneLine(error: Exception) -> str:
    return " ".join(ascii(str(error)).strip("'\"").split())[:200]
