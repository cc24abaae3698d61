"""
Patterns of what is sent, and lists of files.
"""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from connpool.errors import WrongSetting
from connpool.transfer.send import choosing, listed
from connpool.transfer.send.choosing import Choice, Rule, readRules
from connpool.transfer.send.listed import ListedFiles
from connpool.transfer.send.walking import DIRECTORY, FILE, LEFT_OUT, LINK, Walk


def choice(*words):
    """
    A choice of patterns to leave out, and with + before them of those that go.
    """
    return Choice(
        [
            Rule.including(word[1:], "+") if word.startswith("+") else Rule.excluding(word, "-")
            for word in words
        ]
    )


def goes(made, path, directory=False):
    return not made.leftOutBelow(path, directory)


# -- patterns ----------------------------------------------------------------------------


def test_theLastPatternThatFitsDecides():
    made = choice("*.log", "+keep.log", "/top")
    assert not goes(made, "a/b.log")
    assert goes(made, "a/keep.log")
    assert not goes(made, "top")
    assert goes(made, "a/top")
    assert goes(choice("*.log", "!keep.log"), "keep.log")
    assert not goes(choice("+keep.log", "*.log"), "keep.log")


def test_aDirectoryThatIsLeftOutTakesAllBelowWithIt():
    made = choice("build/", "+keep.o")
    assert goes(made, "build")  # a file
    assert not goes(made, "build", directory=True)
    assert not goes(made, "a/build/x/keep.o")


def test_whatGoesSaysWhatStaysIfItComesFirst():
    made = choice("+*.jpg", "+raw/")
    assert goes(made, "a/b.jpg")
    assert goes(made, "raw/b.tiff")
    assert not goes(made, "a.txt")
    assert "no pattern" in made.leftOut("a.txt")
    assert goes(made, "deep", directory=True)
    assert goes(choice("*.txt", "+*.jpg"), "c")


def test_aReasonNamesThePattern():
    assert choice("a", "*.log").leftOut("x.log") == "- *.log"


def test_everyNameIsJudgedWhole():
    """
    Newlines end the library's expressions, and bytes that are no UTF-8 are names all the same.
    """
    made = choice("*.key", "secret/")
    for name in ("a\nb/c.key", "a\nb/secret/x", "\n/c.key", os.fsdecode(b"\xff.key")):
        assert not goes(made, name), name
    assert goes(made, "c.key\n")
    # in an option, this is no comment
    assert not goes(choice("#*#"), "#a#")


@pytest.mark.parametrize("text", ["", " ", "!", "/", "\\", "[", "a\nb"])
def test_aPatternThatNothingFitsIsAMistake(text):
    with pytest.raises(WrongSetting):
        Rule.excluding(text, "-")
    with pytest.raises(WrongSetting):
        Rule.including(text, "+")
    if text:
        with pytest.raises(WrongSetting):
            Choice.ignoring([text])


@pytest.mark.parametrize("pattern", ["*a" * 30 + "b", "[a-z]*" * 20 + "0", "*" * 200 + "b"])
def test_manyStarsTakeNoTime(pattern):
    assert goes(choice(pattern), f"d/{'a' * 250}")


@given(
    st.lists(st.sampled_from(["*", "?", "a", "b", "[ab]", "[!b]", "/", "**", r"\*"]), max_size=9),
    st.lists(st.text("ab*", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_theyMeanWhatTheyMeant(words, parts):
    pattern, path = "".join(words), "/".join(parts)
    try:
        made = choice(pattern)
    except WrongSetting:
        return
    plain = GitIgnoreSpec.from_lines([pattern], backend="simple")
    assert bool(made.leftOut(path)) is plain.match_file(path)


def test_whatGoesIsNotNegatedOnceMore():
    with pytest.raises(WrongSetting, match="leave out"):
        Rule.including("!a", "+")


def test_aFileOfPatterns(tmp_path, monkeypatch):
    file = tmp_path / "patterns"
    file.write_bytes(b"\xef\xbb\xbf*.log\r\n\n# a comment\n!keep.log\n\\#a\n\xff\n")
    rules = readRules(str(file))
    made = Choice(rules)
    assert [rule.origin.rsplit("/", 1)[1] for rule in rules] == [
        f"patterns line {number}:" for number in (1, 4, 5, 6)
    ]
    assert not goes(made, "a.log")
    assert goes(made, "keep.log")
    assert not goes(made, "#a")
    assert not goes(made, os.fsdecode(b"\xff"))
    file.write_text("a\n[\n")
    with pytest.raises(WrongSetting, match="line 2"):
        readRules(str(file))
    monkeypatch.setattr(choosing, "MAX_PATTERNS_BYTES", 3)
    with pytest.raises(WrongSetting, match="more than 3 bytes"):
        readRules(str(file))


# -- what is found -----------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    for path in ("a.c", "b.log", "build/o", "deep/d.c", "deep/x/e.log", "with/f.c"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(path)
    (tree / "link").symlink_to("a.c")
    return tree


def found(walk):
    kinds = {FILE: set(), DIRECTORY: set(), LINK: set(), LEFT_OUT: set()}
    for each in walk:
        kinds[each.kind if each.error is None else str(each.error)].add(each.name.decode())
    return kinds


def test_aWalkChooses(tree):
    kinds = found(Walk([str(tree)], choice=choice("*.log", "build/", "link")))
    assert kinds[FILE] == {"tree/a.c", "tree/deep/d.c", "tree/with/f.c"}
    assert kinds[DIRECTORY] == {"tree", "tree/deep", "tree/deep/x", "tree/with"}
    # what is in a directory that is left out is not looked at
    assert kinds[LEFT_OUT] == {"tree/b.log", "tree/build/", "tree/deep/x/e.log", "tree/link"}
    assert not kinds[LINK]


def test_directoriesWithNothingThatWasChosenAreNotMade(tree):
    kinds = found(Walk([str(tree)], choice=choice("+*.log")))
    assert kinds[FILE] == {"tree/b.log", "tree/deep/x/e.log"}
    assert kinds[DIRECTORY] == {"tree", "tree/deep/x"}


def test_patternsBeginAtWhatIsNamed(tree):
    kinds = found(Walk([str(tree), str(tree / "b.log")], choice=choice("/*.log", "/tree")))
    assert kinds[LEFT_OUT] == {"tree/b.log", "b.log"}


def test_aTreeThatIsReadOnceMoreIsChosenFromAsBefore(tree):
    walk = Walk([str(tree)], choice=choice("*.log"))
    assert "tree/a.c" in found(walk)[FILE]
    (tree / "new.log").write_text("")
    (tree / "new.c").write_text("")
    walk.moved()
    kinds = found(walk)
    assert kinds[FILE] == {"tree/new.c"}
    assert kinds[LEFT_OUT] == {"tree/new.log"}


# -- lists -------------------------------------------------------------------------------


def test_aListKeepsThePathsBelowItsDirectory(tree):
    lines = f"a.c\n\n./deep//d.c\n{tree}/with/f.c\n.\ndeep\nlink\ndeep/../b.log\na.c".encode()
    listed = ListedFiles(lines, base=str(tree))
    for _ in range(2):
        kinds = found(Walk(listed))
        assert kinds[FILE] == {"a.c", "deep/d.c", "with/f.c", "b.log"}
        assert kinds[DIRECTORY] == {"deep"}  # and nothing that is in it
        assert kinds[LINK] == {"link"}
    assert len(list(Walk(listed))) == 6
    kinds = found(Walk(listed, choice=choice("deep/", "*.log")))
    assert kinds[LEFT_OUT] == {"deep", "deep/d.c", "b.log"}


def test_aListWithNULs(tree):
    (tree / "a\nb").write_text("")
    listed = ListedFiles(b"a\nb\0a.c\0", b"\0", str(tree))
    assert found(Walk(listed))[FILE] == {"a\nb", "a.c"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"../other", "not below"),
        (b"/etc/passwd", "not below"),
        (b"deep/../../x", "not below"),
        (b"no", "No such file"),
        (b"a.c/x", "Not a directory"),
        (b"a.c\0b.log", "NUL"),
        (b"\xff", "UTF-8"),
        (b"x" * 300, "too long"),
    ],
)
def test_aLineThatIsNoFile(tree, line, why):
    (each,) = ListedFiles(line, base=str(tree))
    assert why in str(each.error)


def test_aListThatIsTooLong(tmp_path, monkeypatch):
    (tmp_path / "list").write_bytes(b"a\nb\n")
    assert ListedFiles.read(str(tmp_path / "list"), b"\n", ".").data == b"a\nb\n"
    monkeypatch.setattr(listed, "MAX_LIST_BYTES", 3)
    with pytest.raises(WrongSetting, match="divide it"):
        ListedFiles.read(str(tmp_path / "list"), b"\n", ".")


def test_theCurrentDirectoryIsGone(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    (tmp_path / "d").rmdir()
    (found,) = Walk(["."])
    assert str(found.error) == "the current directory was removed"
