"""
Files and directories have what their directory hands down, as if they had been
made in it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

import pytest

from connpool.transfer.stores.directories import Inheritance
from connpool.transfer.stores.publish import inherit
from connpool.transfer.syscalls import Syscalls
from tests.transfer.stores import deaths
from tests.transfer.stores.kit import offer
from tests.transfer.stores.test_commit import inline
from tests.transfer.stores.test_takenaway import WAYS

needsAcl = pytest.mark.skipif(
    shutil.which("setfacl") is None, reason="setfacl is not installed (Debian's acl)"
)
ACL = "d:u:12345:rwx,d:g:54321:rx,d:m::rwx"


def grant(path, acl=ACL):
    run = subprocess.run(["setfacl", "-m", acl, path], capture_output=True, check=False)
    if run.returncode:
        pytest.skip("no ACLs on this file system")


def acl(path):
    """
    The entries that count, as C{getfacl} shows them.
    """
    shown = subprocess.run(["getfacl", "-cpE", path], capture_output=True, text=True, check=True)
    return [line.split("\t")[0] for line in shown.stdout.split("\n") if line]


def made(path, mode, *, directory=False):
    """
    What C{open} or C{mkdir} make of it.
    """
    old = os.umask(0o777)  # a default ACL stands in its place
    try:
        if directory:
            path.mkdir(mode)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
    finally:
        os.umask(old)
    return acl(path), path.stat().st_gid


def send(store, clock, way, name):
    put, level, values, _ = WAYS[way]
    return put(store, clock, offer(name, durability=level, key=os.urandom(32), **values))


@needsAcl
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o666])
def test_aDefaultAcl(root, way, mode):
    grant(root)
    store, clock, _ = inline(root, fileMode=mode)
    send(store, clock, way, "a/x")
    send(store, clock, way, "y")
    assert (acl(root / "a/x"), (root / "a/x").stat().st_gid) == made(root / "a/z", mode)
    assert acl(root / "y") == acl(root / "a/x")
    assert "user:12345:rwx" in acl(root / "y")
    assert (acl(root / "a"), (root / "a").stat().st_gid) == made(root / "b", 0o750, directory=True)
    clock.wait(store.close())


@needsAcl
@pytest.mark.parametrize("way", WAYS)
def test_whatTheRootHandsDownStaysThere(root, way):
    # the private directories lie in the root, and must not carry it elsewhere
    (root / "plain").mkdir(mode=0o755)
    grant(root)
    root.chmod(0o2770)
    os.chown(root, -1, 54321) if os.geteuid() == 0 else None
    store, clock, _ = inline(root)
    send(store, clock, way, "plain/x")
    assert acl(root / "plain/x") == ["user::rw-", "group::r--", "other::---"]
    assert (root / "plain/x").stat().st_gid == os.getegid()
    clock.wait(store.close())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to any group")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refused", [False, True], ids=["allowed", "refused"])
def test_aSetgidDirectory(root, way, refused):
    def before(name, arguments, keywords):
        if name == "fchown" and refused:  # as for a user who is not in the group
            raise PermissionError(1, "Operation not permitted")

    root.chmod(0o2775)
    os.chown(root, -1, 54321)
    store, clock, _ = inline(root, before)
    send(store, clock, way, "a/b/x")
    for path in (root / "a", root / "a/b"):
        assert path.stat().st_gid == 54321
        assert stat.S_IMODE(path.stat().st_mode) == 0o2750
    status = (root / "a/b/x").stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (54321, 0o640)
    assert (root / "a/b/x").read_bytes() == WAYS[way][3]
    assert sorted((root / "a/b").iterdir()) == [root / "a/b/x"]
    clock.wait(store.close())


@needsAcl
@pytest.mark.parametrize("way", ["put", "batch", "large"])
def test_onAnotherMount(root, way):
    # copied there, where the kernel hands down, too
    store, clock, _ = deaths.opened(root, apart=True)
    (root / "a").mkdir()
    grant(root / "a")
    send(store, clock, way, "a/x")
    assert acl(root / "a/x") == made(root / "a/z", 0o640)[0]
    clock.wait(store.close())


def test_aFileSystemWithoutAcls(root):
    calls = Syscalls()
    acl = b"\2\0\0\0\1\0\7\0\377\377\377\377"

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    calls.setxattr = unsupported
    fd = os.open(root / "x", os.O_CREAT | os.O_RDWR)
    assert not inherit(calls, fd, Inheritance(None, acl), 0o604)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o604
    os.close(fd)


@needsAcl
def test_privateDirectoriesStayOurs(root):
    grant(root, "d:u::r-x,d:u:12345:rwx,d:g::rwx,d:m::rwx")
    store, clock, _ = inline(root)
    for name in ("", "temporary", "partials", "done", "ledger"):
        status = (root / ".connpool" / name).stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert not any(line.startswith("default:") for line in acl(root / ".connpool" / name))
    clock.wait(store.close())


@pytest.mark.parametrize("seconds", [-(2**63), -(2**62), 2**62, 2**63 - 1])
@pytest.mark.parametrize("way", ["put", "batch", "large"])
def test_aTimeThatNoFileSystemHolds(root, way, seconds):
    store, clock, _ = inline(root)
    put, level, values, content = WAYS[way]
    asked = offer("x", durability=level, modified=seconds * 10**9 + 1, key=b"k" * 32, **values)
    assert put(store, clock, asked).status == "stored"
    assert (root / "x").read_bytes() == content
    clock.wait(store.close())
