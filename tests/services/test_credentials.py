import pytest
import pytest_twisted
from twisted.cred.checkers import AllowAnonymousAccess, FilePasswordDB
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

from connpool.errors import AuthenticationFailed
from connpool.interfaces import IAuthenticator
from connpool.services.credentials import GUESS_BURST, GUESS_INTERVAL_SECONDS, Authenticator
from connpool.transfer.identities import Identities


def peer(host="192.0.2.1"):
    if host is None:
        return StringTransport(peerAddress=UNIXAddress(b""))
    kind = IPv6Address if ":" in host else IPv4Address
    return StringTransport(peerAddress=kind("TCP", host, 1))


@pytest.fixture
def authenticator(tmp_path):
    (tmp_path / "passwords").write_text("alice:secret\nbob:geheim:two\n")
    return Authenticator(Clock(), [FilePasswordDB(str(tmp_path / "passwords"))])


def test_provides(authenticator):
    verifyObject(IAuthenticator, authenticator)


@pytest_twisted.ensureDeferred
async def test_passwords(authenticator):
    assert authenticator.takesPasswords
    assert (await authenticator.password(peer(), "alice", b"secret")).principal == "alice"
    for user, secret in [
        ("alice", b"Secret"),
        ("alice", b""),
        ("", b""),
        ("nobody", b"secret"),
        ("alice\0", b"secret"),
        ("\ud800", b"secret"),
        ("alice\n", b"secret"),
    ]:
        with pytest.raises(AuthenticationFailed, match="user or password is wrong"):
            await authenticator.password(peer(), user, secret)


@pytest_twisted.ensureDeferred
async def test_theTableSaysWhoMaySend(tmp_path):
    (tmp_path / "passwords").write_text("alice:secret\nbob:geheim\n")
    authenticator = Authenticator(
        Clock(),
        [FilePasswordDB(str(tmp_path / "passwords"))],
        Identities.parse("[users.alice]\ndirectory = 'a'"),
    )
    assert (await authenticator.password(peer(), "alice", b"secret")).directory.path == "a"
    with pytest.raises(AuthenticationFailed, match="user or password is wrong"):
        await authenticator.password(peer(), "bob", b"geheim")


@pytest_twisted.ensureDeferred
async def test_guessingAtSpeed(authenticator):
    async def wrong(host):
        with pytest.raises(AuthenticationFailed) as caught:
            await authenticator.password(peer(host), "alice", b"guess")
        return "too many" in str(caught.value)

    assert [await wrong(f"192.0.2.{n}") for n in range(GUESS_BURST)] == [False] * GUESS_BURST
    assert await wrong("192.0.2.77")
    # the right one does not help whoever guessed, and nobody else is locked out
    with pytest.raises(AuthenticationFailed, match="too many"):
        await authenticator.password(peer("192.0.2.5"), "alice", b"secret")
    assert not await wrong("198.51.100.1")
    assert not await wrong("2001:db8::1")
    assert not await wrong(None)
    authenticator._clock.advance(GUESS_INTERVAL_SECONDS)
    assert (await authenticator.password(peer("192.0.2.5"), "alice", b"secret")).principal
    assert not await wrong("192.0.2.5")
    assert await wrong("192.0.2.5")


@pytest_twisted.ensureDeferred
async def test_oneGuesserOnADualStackSocketShutsNobodyElseOut(authenticator):
    for _ in range(GUESS_BURST + 1):
        with pytest.raises(AuthenticationFailed):
            await authenticator.password(peer("::ffff:192.0.2.1"), "alice", b"guess")
    assert await authenticator.password(peer("::ffff:198.51.100.1"), "alice", b"secret")
    with pytest.raises(AuthenticationFailed, match="too many"):
        await authenticator.password(peer("192.0.2.2"), "alice", b"secret")


@pytest_twisted.ensureDeferred
async def test_aClockThatIsSetBackShutsNobodyOut(authenticator):
    clock = authenticator._clock
    clock.rightNow = 1e9
    assert await authenticator.password(peer(), "alice", b"secret")
    clock.rightNow -= 3600
    assert await authenticator.password(peer(), "alice", b"secret")
    for _ in range(GUESS_BURST):
        with pytest.raises(AuthenticationFailed):
            await authenticator.password(peer(), "alice", b"guess")
    clock.rightNow -= 3600
    with pytest.raises(AuthenticationFailed, match="too many"):
        await authenticator.password(peer(), "alice", b"secret")
    clock.advance(GUESS_INTERVAL_SECONDS)
    assert await authenticator.password(peer(), "alice", b"secret")


@pytest_twisted.ensureDeferred
async def test_rightPasswordsAreNotCharged(authenticator):
    for _ in range(GUESS_BURST * 3):
        await authenticator.password(peer(), "alice", b"secret")


@pytest_twisted.ensureDeferred
async def test_aBrokenCheckerRefuses(tmp_path, expectFailure):
    expectFailure(OSError)
    authenticator = Authenticator(Clock(), [FilePasswordDB(str(tmp_path))])
    with pytest.raises(AuthenticationFailed):
        await authenticator.password(peer(), "alice", b"secret")


def test_anonymousCheckersCheckNoPasswords():
    assert not Authenticator(Clock(), [AllowAnonymousAccess()]).takesPasswords
