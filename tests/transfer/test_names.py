"""
Names: the whole hostile list, and what may be shown of it.
"""

from __future__ import annotations

import copy
import pickle
from unicodedata import normalize

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connpool.errors import NameRefused
from connpool.transfer.names import (
    MAX_COMPONENT_BYTES,
    MAX_DEPTH,
    MAX_PATH_BYTES,
    PROFILES,
    NameReader,
    RelativeName,
    caselessForm,
    displayName,
    displayText,
)
from tests.transfer.hostile import CORPUS, DOTFILES


def read(parse, raw):
    try:
        return parse(raw)
    except NameRefused as e:
        return str(e)


PARTS = st.one_of(
    st.sampled_from([hostile.raw for hostile in CORPUS if len(hostile.raw) < 300]),
    st.from_regex(rb"[a-zA-Z0-9._ :$-]{0,8}", fullmatch=True),
    st.sampled_from([b"x" * 254, b"x" * 255, b"x" * 256, b"COM1.txt", b"nul", b"a" * 3840]),
)


@given(
    prefix=st.sampled_from(
        [b"", b"d/", b"d/e/", b"../", b"con/", b"\xc3\xa4/", (b"x" * 250 + b"/") * 15]
    ),
    lasts=st.lists(PARTS, min_size=1, max_size=6),
    dotfiles=st.booleans(),
    profile=st.sampled_from(PROFILES),
    directory=st.sampled_from([None, "own", "own/" + "d" * 200]),
)
def test_namesOfOneDirectoryAreReadAsAllNames(prefix, lasts, dotfiles, profile, directory):
    under = None if directory is None else RelativeName.parse(directory)
    reader = NameReader(profile, dotfiles=dotfiles, directory=under)

    def parse(raw):
        name = RelativeName.parse(raw, profile=profile, dotfiles=dotfiles)
        return name if under is None else name.under(under)

    for last in (b"first", *lasts):
        raw = prefix + last
        found, expected = read(reader.read, raw), read(parse, raw)
        assert found == expected
        assert getattr(found, "path", "") == getattr(expected, "path", "")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("item", range(1, 35))
def test_corpus(item: int, profile: str):
    for hostile in CORPUS:
        if hostile.item != item:
            continue
        text = hostile.raw.decode("utf-8", "surrogateescape")
        if hostile.taken(profile):
            name = RelativeName.parse(hostile.raw, profile=profile)
            # byte for byte: nothing normalised, decoded or repaired
            assert name.path.encode() == hostile.raw
            assert "/".join(name.components).encode() == hostile.raw
            assert RelativeName.parse(text, profile=profile) == name
        else:
            for form in (hostile.raw, text):
                with pytest.raises(NameRefused) as refusal:
                    RelativeName.parse(form, profile=profile)
                assert str(refusal.value).isprintable(), hostile
                assert len(str(refusal.value)) < MAX_PATH_BYTES


def test_everyItemIsThere():
    assert {hostile.item for hostile in CORPUS} == set(range(1, 35))


@pytest.mark.parametrize("raw", DOTFILES)
def test_noDotfiles(raw: bytes):
    assert RelativeName.parse(raw).path.encode() == raw
    with pytest.raises(NameRefused, match="dotfiles"):
        RelativeName.parse(raw, dotfiles=False)


def test_onlyTheParserMakesNames():
    with pytest.raises(TypeError):
        RelativeName()
    with pytest.raises(TypeError):
        RelativeName(("..", "x"), "../x")
    name = RelativeName.parse("a/b")
    with pytest.raises(TypeError):
        attrs.evolve(name, components=("..",))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        name.components = ("..",)
    assert copy.copy(name) == name == pickle.loads(pickle.dumps(name))


def test_equalAndHashable():
    assert RelativeName.parse("a/b") == RelativeName.parse(b"a/b")
    assert RelativeName.parse("a/b") != RelativeName.parse("a/B")
    assert len({RelativeName.parse("a"), RelativeName.parse("a"), RelativeName.parse("b")}) == 2


def test_under():
    inside = RelativeName.parse("a/b").under(RelativeName.parse("alice"))
    assert inside == RelativeName.parse("alice/a/b")
    assert inside.path == "alice/a/b"
    with pytest.raises(NameRefused):
        RelativeName.parse("/".join(["d"] * MAX_DEPTH)).under(RelativeName.parse("a"))
    with pytest.raises(NameRefused):
        RelativeName.parse("/".join(["d" * 250] * 16)).under(RelativeName.parse("d" * 250))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("foo", "foo (1)"),
        ("foo.txt", "foo (1).txt"),
        ("foo.tar.gz", "foo (1).tar.gz"),
        ("foo (1).txt", "foo (1) (1).txt"),
        (".bashrc", ".bashrc (1)"),
        (".config.json", ".config (1).json"),
        ("report-1.2.3", "report-1.2.3 (1)"),
        ("a.mp3", "a (1).mp3"),
        ("What I did. A diary", "What I did. A diary (1)"),
        ("d.x/foo.txt", "d.x/foo (1).txt"),
        ("x" * 255, "x" * 251 + " (1)"),
        ("x" * 251 + ".txt", "x" * 247 + " (1).txt"),
        ("文" * 85, "文" * 83 + " (1)"),
        # the cut would fall between the letter and its accent
        ("x" * 250 + "a\u0302" + "yy", "x" * 250 + " (1)"),
    ],
)
def test_variant(name: str, expected: str):
    variant = RelativeName.parse(name).variant("1")
    assert variant.path == expected
    assert RelativeName.parse(variant.path) == variant


@given(st.text(max_size=300), st.text("0123456789abcdef", min_size=1, max_size=16))
def test_variantIsAlwaysAName(text: str, mark: str):
    try:
        name = RelativeName.parse(text)
    except NameRefused:
        return
    variant = name.variant(mark)
    assert RelativeName.parse(variant.path) == variant
    assert variant != name


@given(st.one_of(st.binary(max_size=400), st.text(max_size=300)))
def test_whatIsTakenIsHarmless(name: bytes | str):
    for profile in PROFILES:
        try:
            taken = RelativeName.parse(name, profile=profile)
        except NameRefused:
            continue
        raw = name if isinstance(name, bytes) else name.encode()
        assert taken.path.encode() == raw
        for component in taken.components:
            assert component not in {"", ".", ".."}
            assert not set(component) & {"/", "\0", "\n", "\r", "\x1b"}
            assert len(component.encode()) <= MAX_COMPONENT_BYTES


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.txt", "plain name.txt"),
        ("文件", "文件"),
        ("a\x1b[2J", "a\\x1b[2J"),
        (b"a\x1b\xff", "a\\x1b\\xff"),
        ("a\u202eb", "a\\u202eb"),
        ("a\x9bb", "a\\u009bb"),
        ("a\nb\rc\td", "a\\x0ab\\x0dc\\x09d"),
        ("a\\nb", "a\\\\nb"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("nb\u00a0sp", "nb\\u00a0sp"),
        ("", ""),
        ("x" * 600, "x" * 512 + "…"),
    ],
)
def test_displayName(name: bytes | str, shown: str):
    assert displayName(name) == shown


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80)))
def test_displayNameIsPrintable(name: bytes | str):
    assert displayName(name).isprintable()


@given(st.text(max_size=12), st.text(max_size=12))
def test_displayNameKeepsNamesApart(one: str, other: str):
    assert (displayName(one) == displayName(other)) == (one == other)


@pytest.mark.parametrize(
    "spellings",
    [
        ("README", "ReadMe", "readme"),
        ("\u00e2", "a\u0302", "\u00c2", "A\u0302"),
        ("ß", "ss", "SS", "ẞ", "ſs"),
        ("İ", "I\u0307", "i\u0307"),
        ("\u212a", "K", "k"),
        ("Å", "\u212b", "a\u030a"),
        ("ς", "σ", "Σ"),
        ("ﬃ", "ffi", "FFI"),
        ("ſ\u0301", "ś", "S\u0301"),
        # the iota below must not hide that the accents have another order
        ("\u1fb7", "α\u0342\u0345", "α\u0345\u0342", "ᾶι"),
    ],
    ids=ascii,
)
def test_caselessForm(spellings: tuple[str, ...]):
    assert len({caselessForm(each) for each in spellings}) == 1


def test_caselessFormsThatDiffer():
    names = ["i", "ı", "i\u0307", "a", "Ａ", "ａ\u0302", "²", "2", "a b", "ab", "\udcff", "\udcfe"]
    assert len({caselessForm(each) for each in names}) == len(names)


@given(st.text(max_size=30), st.text(max_size=30))
def test_caselessFormDependsOnNothingAround(one: str, other: str):
    assert caselessForm(f"{one}/{other}") == f"{caselessForm(one)}/{caselessForm(other)}"
    for form in ("NFC", "NFD"):
        assert caselessForm(normalize(form, one)) == caselessForm(one)


def test_strOfANameIsSafe():
    assert str(RelativeName.parse("a\\b", profile="posix")) == "a\\\\b"


def test_aReaderDoesNotTakeAnAbsoluteNameForALaterOne():
    reader = NameReader("portable", dotfiles=True)
    assert reader.read(b"a").path == "a"
    with pytest.raises(NameRefused):
        reader.read(b"/x")
    assert reader.read(b"d/a").path == "d/a"
    for name in (b"/d/x", b"d//x", b"d/", b"/d"):
        with pytest.raises(NameRefused):
            reader.read(name)
    assert reader.read(b"d/b").path == "d/b"


def test_displayText():
    """
    Names in a text were escaped by whoever wrote it.
    """
    assert displayText('there is no "a\\x0ab"') == 'there is no "a\\x0ab"'
    assert displayText("\x1b[31m\\\\x\\\n") == r"\x1b[31m\\x\\x0a"
    for text in ("\\", "\\\\", "\\\x1b", "a\\b"):
        assert displayText(text) == text.replace("\x1b", "\\x1b")
