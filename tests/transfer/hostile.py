"""
The corpus of hostile file names, with the verdict of each profile.

Every front end runs it through real sockets: a refused name gets its one line
and creates nothing; a taken name is stored byte for byte.  The numbers are
kept stable so that other tests can name an item.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Hostile:
    """
    @ivar item: number in the corpus, 1 to 34.
    @ivar raw: the bytes as a peer sends them.
    @ivar portable: whether the portable profile (the default) takes it.
    @ivar posix: whether the posix profile takes it.
    """

    item: int
    raw: bytes
    portable: bool
    posix: bool

    def taken(self, profile: str) -> bool:
        return self.portable if profile == "portable" else self.posix

    def __str__(self) -> str:
        short = self.raw if len(self.raw) <= 40 else self.raw[:30] + b"..%d" % len(self.raw)
        return f"{self.item}-{short!r}"


def _refused(item: int, *names: bytes | str) -> list[Hostile]:
    return [Hostile(item, _bytes(name), portable=False, posix=False) for name in names]


def _posixOnly(item: int, *names: bytes | str) -> list[Hostile]:
    return [Hostile(item, _bytes(name), portable=False, posix=True) for name in names]


def _taken(item: int, *names: bytes | str) -> list[Hostile]:
    return [Hostile(item, _bytes(name), portable=True, posix=True) for name in names]


def _bytes(name: bytes | str) -> bytes:
    return name if isinstance(name, bytes) else name.encode()


CORPUS: list[Hostile] = [
    *_refused(1, b""),
    *_refused(2, b"."),
    *_refused(3, b".."),
    *_refused(4, b"../x", b"../../x", b"../../../../../../../../tmp/x"),
    *_refused(5, b"a/../../x", b"a/b/../../../x"),
    *_refused(6, b"a/..", b"a/../x"),
    *_refused(7, b"./x"),
    *_refused(8, b"/etc/passwd", b"/x", b"/"),
    *_refused(9, b"//host/share/x", b"//x"),
    *_taken(10, b"~", b"~root", b"~/.ssh/authorized_keys", b"~root/x"),
    *_refused(11, b"a//b", b"a/", b"/a", b"a/b//", b"///"),
    *_refused(12, b"a/./b", b"a/."),
    *_posixOnly(13, b"..\\..\\x", b"a\\b", b"\\x", b"..\\x", b"a\\"),
    *_posixOnly(14, b"C:x", b"C:\\x", b"\\\\?\\C:\\x", b"\\??\\C:\\x", b"\\\\.\\pipe\\x"),
    *_refused(14, b"C:/../x"),
    *_posixOnly(15, b"x.txt:evil", b"x::$DATA", b"a:b/c"),
    *_posixOnly(16, b"CON", b"nul", b"NUL.txt", b"COM1", b"LPT9.log", "COM¹", b"CONIN$"),
    *_posixOnly(16, b"CLOCK$", b"aux.h", b"con .txt", b"PRN.tar.gz", b"a/aux/b", b"LPT1/x"),
    *_taken(16, b"CONSOLE", b"COM10", b"nullable.txt", b"x.con", b"aux_", b"com", b"lpt.txt"),
    *_posixOnly(17, b"x.", b"x ", b" x", b"...", b" ", b"a./b", b"a/ b", b".. "),
    *_taken(17, b"a b", b"a.b c", b"x.tar.gz"),
    *_refused(18, b"a\0b", b"\0", b"x\0.txt", b"x\0"),
    *_refused(19, b"a\nb", b"a\rb", b"a\tb", b"a\x1b[2Jb", b"a\x07b", b"a\x7fb", b"x\n"),
    *_refused(19, "a\x9bb", "a\x85b", b"a\x9bb"),
    *_refused(20, b"\xff", b"\xc0\xae", b"\xc0\xae\xc0\xae/x", b"\xed\xa0\x80", b"\xff\xfea\0"),
    *_refused(20, b"caf\xe9", b"\xf8\x88\x80\x80\x80", b"a\xc3", b"\xf4\x90\x80\x80"),
    *_taken(21, b"%2e%2e%2f", b"%2e%2e%2fx", b"%252e%252e%252f", b"..%2fx", b"%00", b"..%5cx"),
    *_refused(22, "a\u202egpj.exe", "a\u200bb", "a\u2028b", "a\u2029b", "a\U000e0041b"),
    *_refused(22, "\ufeffa", "a\u2066b", "a\u200eb", "a\u00adb", "a\u200db", "\u200c", "\u200dé"),
    *_refused(22, "é\u200c\u200cé", "a\ufffeb", "a\ufdd0b"),
    *_taken(22, "می\u200cخواهم.txt", "\U0001f469\u200d\U0001f4bb.png", "❤\ufe0f"),
    *_taken(23, "\u00e2", "a\u0302", b"A", b"a", "ß", b"ss", "İ", "K", b"K"),
    *_taken(24, "..／x", "．．", "．．/x", "․․", "․․/x", "a∕b", "a⧸b"),
    *_refused(25, b"x" * 256, b"a/" + b"x" * 256, "é" * 255, "文" * 86, b"x" * 300 + b"/a"),
    *_taken(25, b"x" * 255, "文" * 85, b"a/" + b"y" * 255),
    *_refused(26, b"/".join([b"x" * 255] * 17), b"a/" * 2047 + b"abc", b"x" * 4097),
    *_refused(26, b"/".join([b"d"] * 10_000), b"/".join([b"d"] * 129)),
    *_taken(26, b"/".join([b"d"] * 128)),
    *_refused(27, b"a/" * 100_000 + b"a"),
    *_refused(28, b".connpool", b".connpool/partials/x", b".CONNPOOL", b".ConnPool/x"),
    *_refused(28, b"a/.connpool", b".connpool-1a2b", b".connpool.txt", "\u200c.connpool"),
    *_taken(28, b"connpool", b"x.part", b"a.journal", b"x.connpool"),
    *_taken(29, b"-rf", b"--config=x", b"-", b"--", b"-/-"),
    *_taken(30, b"*", b"?", b"[a-z]", b"%s", b"%n", b"{0}", b"$(id)", b"`id`", b"'\"", b"$HOME"),
    *_taken(30, b"a;b", b"a|b", b"a&b", b"<b>x", b"#x", b"!x", b"a=b", b"{}", b'"; rm -rf x'),
    *_taken(31, b".bashrc", b".ssh/authorized_keys", b".htaccess", b"crontab", b"a/.hidden"),
    *_taken(32, b"a", b"a/b", b"a/b/c"),
    *_taken(33, b"same", b"same"),
    *_taken(34, b"PROGRA~1", b"CONNPO~1"),
]

#: What C{--no-dotfiles} refuses as well.
DOTFILES: list[bytes] = [b".bashrc", b".ssh/authorized_keys", b".htaccess", b"a/.hidden", b"a/.b/c"]
