import pytest

from connpool.services.options import asSize
from connpool.transfer.identities import Identities, IdentitiesError

TABLE = """
[users.alice]
directory = "alice"
max-file-size = "10G"
max-transfers = 3
[users."b@example.com"]
[certificates."backup.example"]
directory = "machines/backup"
max-file-size = 1000
[certificates.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]
directory = "by-fingerprint"
"""

FINGERPRINT = "a" * 64


def test_users():
    identities = Identities.parse(TABLE, asSize)
    alice = identities.ofUser("alice")
    assert (alice.principal, alice.directory.path) == ("alice", "alice")
    assert (alice.maxFileSize, alice.maxTransfers) == (10 << 30, 3)
    assert identities.ofUser("b@example.com").directory is None
    assert identities.ofUser("Alice") is None
    assert identities.ofUser("backup.example") is None


def test_certificates():
    identities = Identities.parse(TABLE, asSize)
    by_name = identities.ofCertificate("b" * 64, ["backup.example"])
    assert (by_name.principal, by_name.directory.path) == (
        "certificate:backup.example",
        "machines/backup",
    )
    assert identities.ofCertificate(FINGERPRINT, []).directory.path == "by-fingerprint"


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["BACKUP.example"],
        ["backup.example\0"],
        ["backup.example", "backup.example"],
        ["other", "backup.example"],
        ["../backup.example"],
        # a subject that claims another certificate's fingerprint
        [FINGERPRINT],
    ],
)
def test_hostileSubjectsAreNobody(names):
    assert Identities.parse(TABLE, asSize).ofCertificate("b" * 64, names) is None


@pytest.mark.parametrize(
    "text",
    [
        "users",
        "users = 1",
        "[user.alice]",
        "[users]\nalice = 1",
        "[users.anonymous]",
        '[users.""]',
        '[users."certificate:x"]',
        "[users.alice]\ndirectory = '../x'",
        "[users.alice]\ndirectory = '/x'",
        "[users.alice]\ndirectory = 1",
        "[users.alice]\nmax-file-size = '1X'",
        "[users.alice]\nmax-file-size = true",
        "[users.alice]\nmax-file-size = -1",
        "[users.alice]\nmax-transfers = 0",
        "[users.alice]\ncolour = 1",
        "[users.alice]\nquota = 1.5",
        "[users.alice]\nmax-time = 0",
        "[users.alice]\nmax-time = inf",
        "[users.alice]\nidle-timeout = true",
        "[users.alice]\nmax-files-per-day = 'many'",
        "defaults = 1",
        "[defaults]\ncolour = 1",
        '[users."\\u001b[2J"]\nx = 1',
    ],
)
def test_mistakesAreOneLine(text):
    with pytest.raises(IdentitiesError) as caught:
        Identities.parse(text, asSize)
    assert str(caught.value).isprintable()


def test_everyLimitAndItsDefault():
    identities = Identities.parse(
        """
        [defaults]
        max-rate = "1M"
        max-time = 3600
        quota = "1G"
        [users.alice]
        max-rate = 0
        max-connections = 2
        max-bytes-per-day = "10G"
        max-files-per-day = 1000
        min-rate = 10
        idle-timeout = 2.5
        quota = "2G"
        [users.bob]
        """,
        asSize,
    )
    alice, bob = identities.ofUser("alice"), identities.ofUser("bob")
    assert (alice.maxRate, alice.maxTime, alice.quota) == (None, 3600.0, 2 << 30)
    assert (alice.maxConnections, alice.maxBytes, alice.maxFiles) == (2, 10 << 30, 1000)
    assert (alice.minimumRate, alice.idleTimeout) == (10, 2.5)
    assert (bob.maxRate, bob.maxTime, bob.quota) == (1 << 20, 3600.0, 1 << 30)
    assert (bob.maxConnections, bob.maxBytes, bob.maxFiles, bob.minimumRate) == (None,) * 4


def test_readingIsThePermissionOfAnIdentity():
    table = Identities.parse(
        """
        [users.alice]
        directory = "alice"
        read = true
        [users.eve]
        read = "everything"
        [users.bob]
        directory = "bob"
        [users.carol]
        read = false
        """
    )
    reads = {name: identity.read for name, identity in table.users.items()}
    assert reads == {"alice": "own", "eve": "everything", "bob": "", "carol": ""}
    assert table.reading
    assert not Identities.parse("[users.bob]").reading


@pytest.mark.parametrize(
    "text",
    [
        "[users.bob]\nread = true",
        "[defaults]\nread = true\n[users.bob]",
        '[certificates.bob]\nread = "own"',
        "[users.bob]\nread = 1",
        '[users.bob]\nread = "all"',
    ],
)
def test_readingEverythingMustBeWritten(text):
    with pytest.raises(IdentitiesError) as caught:
        Identities.parse(text)
    assert "everything" in str(caught.value)
    assert "bob" in str(caught.value)
