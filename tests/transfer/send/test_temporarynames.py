import pytest

from connpool.transfer.send.temporarynames import TemporaryNames


@pytest.mark.parametrize(
    "name",
    [
        ".x.Ab12",
        ".report.pdf.a8XkQz",
        ".9.zzzzz1",
        "film.part",
        "a.tmp",
        "notes.txt~",
        ".~tmp~",
        ".~lock.a.odt#",
        "~$a.docx",
        ".a.txt.swp",
        ".nfs000000000003a1b7",
        ".fuse_hidden0000001",
        ".rsync-partial",
    ],
)
def test_isTemporary(name):
    assert name in TemporaryNames()
    assert name not in TemporaryNames(usual=False)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "x.Ab12",
        ".config.json",
        ".log.2026",
        ".x.tar.gz",
        ".hidden",
        ".bashrc.backup",
        "tmp",
        "part.1",
        "a.tmp.gz",
        "~a",
        ".x.Ab12\nb",
    ],
)
def test_isNot(name):
    assert name not in TemporaryNames()
