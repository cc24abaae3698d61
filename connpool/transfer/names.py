"""
File names that came from a peer.

Theory of operation
===================
A L{RelativeName} is the only way from a peer's text to the file system, and
L{RelativeName.parse} is the only way to a L{RelativeName}.  A store takes
nothing else and opens its components one by one, so no check is needed later.

A name is refused or taken byte for byte; it is never repaired, because a
repaired name is one that nobody asked for and that a second file may own.

Two profiles: C{portable} also refuses what Windows cannot store or would read
as something else (item numbers of C{tests/transfer/hostile.py} 13 to 17), and
stores keep no two names in a directory that differ only in case or composition
(item 23); C{posix} takes all that a POSIX file system can keep apart.

Whatever else reaches a person or a program outside (logs, terminals, metrics,
hooks) goes through L{displayName}.
"""

from __future__ import annotations

import re
import unicodedata

import attrs

from connpool.errors import NameRefused

__all__ = [
    "INTERNAL",
    "PROFILES",
    "NameReader",
    "RelativeName",
    "caselessForm",
    "displayName",
    "displayText",
]

#: What a name is checked against.
PROFILES = ("portable", "posix")

#: Names of a store's own, at any level and in any case: C{.connpool} and
#: whatever begins with it.
INTERNAL = ".connpool"

#: Bytes of one component: C{NAME_MAX} of every Linux file system.
MAX_COMPONENT_BYTES = 255
#: Bytes of the whole name, separators included.
MAX_PATH_BYTES = 4096
#: Components of one name: each costs the receiver a directory.
MAX_DEPTH = 128

#: Characters that need no look at their Unicode category.
_PLAIN = re.compile(r"[!-~ ]*", re.ASCII)
#: Refused everywhere: controls, invisible and bidirectional format characters,
#: line and paragraph separators, surrogates.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
#: Joiners belong to the spelling of Persian, Hindi and emoji: taken between
#: two characters that are not ASCII, where they cannot disguise one that is.
_JOINERS = "\u200c\u200d"
_BETWEEN = re.compile(r"[^\x00-\x7f\u200c\u200d][\u200c\u200d][^\x00-\x7f\u200c\u200d]")

#: Names that Windows reads as devices, whatever extension follows.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"}
)

#: One or two extensions, C{.tar.gz}: short, and not just a number.
_EXTENSIONS = re.compile(r"(?:\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{1,7}){1,2}\Z")

#: A last component that is taken under both profiles, whatever is before it.
_ORDINARY = re.compile(
    rb"(?!(?i:con|prn|aux|nul|conin|conout|clock|com[0-9]|lpt[0-9])(?:\.|\Z))"
    rb"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_-])?"
)

#: Characters of a name that L{displayName} shows.
MAX_DISPLAYED_CHARACTERS = 512


def _refuse(text: str | bytes, why: str) -> NameRefused:
    return NameRefused(f'file name "{displayName(text)}" refused: {why}')


def _joins(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) in {"Mn", "Mc", "Me"}


def _strangeCharacter(text: str) -> str | None:
    """
    @return: what is wrong with a character of C{text}, or L{None}.
    """
    for position, character in enumerate(text):
        if character.isalnum():
            continue
        code = ord(character)
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            if character in _JOINERS and _BETWEEN.fullmatch(
                text, max(position - 1, 0), position + 2
            ):
                continue
            return f"it contains the control or invisible character U+{code:04X}"
        if code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
            return f"it contains U+{code:04X}, which is not a character"
    return None


def _whyNotPortable(component: str) -> str | None:
    if "\\" in component or ":" in component:
        return "it contains a backslash or colon; the receiver takes it with --names posix"
    if component[0] == " " or component[-1] in " .":
        return "a part begins with a space or ends with a space or dot; see --names posix"
    if component.partition(".")[0].rstrip(" ").lower() in _DEVICES:
        return "a part is a device name on Windows; the receiver takes it with --names posix"
    return None


@attrs.frozen(init=False, order=True)
class RelativeName:
    """
    A checked name, relative to a store's root.

    @ivar components: at least one; none is empty, C{.}, C{..}, longer than
        255 bytes or holds a slash or a control character.
    @ivar path: the components joined by C{/}: for receipts and the wire, and
        through L{displayName} for people; never for the kernel.
    """

    components: tuple[str, ...]
    path: str = attrs.field(eq=False)

    def __init__(self) -> None:
        raise TypeError("RelativeName.parse() makes these")

    @classmethod
    def _of(cls, components: tuple[str, ...], path: str) -> RelativeName:
        self = object.__new__(cls)
        object.__setattr__(self, "components", components)
        object.__setattr__(self, "path", path)
        return self

    @classmethod
    def parse(
        cls, name: str | bytes, *, profile: str = "portable", dotfiles: bool = True
    ) -> RelativeName:
        """
        Read a name.

        @param name: as the peer sent it; bytes are UTF-8.
        @param profile: one of L{PROFILES}.
        @param dotfiles: whether components may begin with a dot.
        @raise NameRefused: with one line that is safe to print and to send.
        """
        # the length first: nothing below may cost more than the limit allows
        if len(name) > MAX_PATH_BYTES:
            raise _refuse(name, f"it is longer than {MAX_PATH_BYTES} bytes")
        try:
            if isinstance(name, str):
                text, raw = name, name.encode()
            else:
                text, raw = str(name, "utf-8"), name
        except UnicodeError:
            raise _refuse(name, "it is not valid UTF-8") from None
        if not text:
            raise _refuse(text, "it is empty")
        if len(raw) > MAX_PATH_BYTES:
            raise _refuse(text, f"it is longer than {MAX_PATH_BYTES} bytes")
        if not _PLAIN.fullmatch(text) and (why := _strangeCharacter(text)):
            raise _refuse(text, why)
        components = tuple(text.split("/"))
        if len(components) > MAX_DEPTH:
            raise _refuse(text, f"it has more than {MAX_DEPTH} parts")
        for component in components:
            if component in {"", ".", ".."}:
                raise _refuse(text, "a part is empty, '.' or '..'; send a relative name")
            if len(component.encode()) > MAX_COMPONENT_BYTES:
                raise _refuse(text, f"a part is longer than {MAX_COMPONENT_BYTES} bytes")
            if component[0] == ".":
                if component.lower().startswith(INTERNAL):
                    raise _refuse(text, f"{INTERNAL}* belongs to the receiver")
                if not dotfiles:
                    raise _refuse(text, "a part begins with a dot; the receiver takes no dotfiles")
            if profile == "portable" and (why := _whyNotPortable(component)):
                raise _refuse(text, why)
        return cls._of(components, text)

    def under(self, directory: RelativeName) -> RelativeName:
        """
        The same name inside C{directory}, for identities that own one.

        @raise NameRefused: if both together are too long or too deep.
        """
        components = directory.components + self.components
        path = f"{directory.path}/{self.path}"
        if len(components) > MAX_DEPTH or len(path.encode()) > MAX_PATH_BYTES:
            raise _refuse(self.path, "it is too long or too deep for its directory")
        return self._of(components, path)

    def variant(self, mark: str) -> RelativeName:
        """
        Another name in the same directory, for when this one is taken:
        C{a.tar.gz} with mark C{1} is C{a (1).tar.gz}.

        The stem is shortened on a character boundary where 255 bytes do not
        hold it all.

        @param mark: ASCII letters and digits of our own making.
        """
        last = self.components[-1]
        found = _EXTENSIONS.search(last, 1)
        stem, extension = (last[: found.start()], found[0]) if found else (last, "")
        tail = f" ({mark}){extension}"
        room = MAX_COMPONENT_BYTES - len(tail)  # both are ASCII
        kept = stem.encode()[:room].decode("utf-8", "ignore")
        # not between a letter and its accent or joiner
        while kept and len(kept) < len(stem) and _joins(stem[len(kept)]):
            kept = kept[:-1]
        last = kept + tail
        return self._of((*self.components[:-1], last), "/".join((*self.components[:-1], last)))

    def __str__(self) -> str:
        return displayName(self.path)


class NameReader:
    """
    Reads names as L{RelativeName.parse} does.  Those of one directory mostly come one after
    the other, and only the first of them is looked at part by part.

    @param directory: where all names lie, of identities that own one.
    """

    def __init__(
        self, profile: str, *, dotfiles: bool, directory: RelativeName | None = None
    ) -> None:
        self._profile = profile
        self._dotfiles = dotfiles
        self._directory = directory
        #: the latest one as it was sent, and what it came to
        self._sent = b""
        self._components: tuple[str, ...] = ()
        self._path = ""
        #: bytes of a name in it; none before there is a latest one
        self._most = 0

    def read(self, name: bytes) -> RelativeName:
        """
        Read a name.

        @raise NameRefused: as L{RelativeName.parse} and L{RelativeName.under}.
        """
        at = len(self._sent)
        # the pattern has no slash: nothing but a last component follows
        known = len(name) <= self._most and name.startswith(self._sent)
        if known and _ORDINARY.fullmatch(name, at):
            text = name[at:].decode("ascii")
            return RelativeName._of((*self._components, text), self._path + text)
        found = RelativeName.parse(name, profile=self._profile, dotfiles=self._dotfiles)
        if self._directory is not None:
            found = found.under(self._directory)
        # with its slash: /x is not in the directory that x is in
        self._sent = name[: name.rfind(b"/") + 1]
        self._components = found.components[:-1]
        self._path = found.path.removesuffix(found.components[-1])
        # without a slash the whole name must fit, as it was sent, too
        longer = max(0, len(self._path.encode()) - len(self._sent))
        self._most = MAX_PATH_BYTES - longer
        return found


def caselessForm(text: str) -> str:
    """
    The form that all spellings of C{text} have in common that differ only in case or
    composition (Unicode D145); of a path, the path of its components' forms.
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())


def displayName(name: str | bytes) -> str:
    """
    C{name} for a person, a log, a terminal, a metric or a hook: one line,
    nothing invisible, nothing that moves a cursor or turns the text around.

    Different names of up to 512 characters are shown differently: a backslash
    is doubled, whatever cannot be printed is an escape as Python writes it.
    """
    if not isinstance(name, str):
        # lone surrogates stand for bytes that are not UTF-8 (PEP 383)
        name = bytes(name[: 4 * MAX_DISPLAYED_CHARACTERS + 1]).decode("utf-8", "surrogateescape")
    if len(name) > MAX_DISPLAYED_CHARACTERS:
        name, more = name[:MAX_DISPLAYED_CHARACTERS], "…"
    else:
        more = ""
    if name.isprintable() and "\\" not in name:
        return name + more
    return "".join(map(_shown, name)) + more


def displayText(text: str) -> str:
    """
    A text of a peer or a program for a person: as L{displayName} has it, but for the
    backslashes, for the names in it are escaped already.
    """
    return displayName(text).replace("\\\\", "\\")


def _shown(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
