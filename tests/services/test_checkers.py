import pytest
import pytest_twisted
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.logger import capturedLogs, formatEvent
from twisted.python import usage

from connpool.services.checkers import passwordChecker


@pytest.fixture
def passwords(tmp_path):
    path = tmp_path / "passwords"
    path.write_text("alice:secret\nbob:correct:horse \nempty:\nnothing\n")
    return path


@pytest_twisted.ensureDeferred
async def test_theWholePasswordCounts(passwords):
    checker = passwordChecker("auth", f"file:{passwords}")
    for user, password in ((b"alice", b"secret"), (b"bob", b"correct:horse")):
        assert await checker.requestAvatarId(UsernamePassword(user, password)) == user
    for user, password in (
        (b"bob", b"correct"),
        (b"bob:correct", b"horse"),
        (b"empty", b""),
        (b"nothing", b""),
        (b"", b""),
    ):
        with pytest.raises(UnauthorizedLogin):
            await checker.requestAvatarId(UsernamePassword(user, password))


@pytest_twisted.ensureDeferred
async def test_aFileThatIsGoneLetsNobodyIn(passwords):
    checker = passwordChecker("auth", f"file:{passwords}")
    passwords.unlink()
    with capturedLogs() as logs, pytest.raises(UnauthorizedLogin):
        await checker.requestAvatarId(UsernamePassword(b"alice", b"secret"))
    assert [formatEvent(each) for each in logs] == [
        f"cannot read {passwords}: No such file or directory"
    ]


@pytest.mark.parametrize("where", ["file:{}/none", "file:{}", "memory:a:b", "anonymous", "such"])
def test_mistakes(tmp_path, where):
    with pytest.raises(usage.UsageError, match=r"^--auth: ") as caught:
        passwordChecker("auth", where.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_aCheckerThatDoesNotExist():
    with pytest.raises(
        usage.UsageError, match="no checker 'ldap'; see twistd filerecv --help-auth"
    ):
        passwordChecker("auth", "ldap:dc=example")
