import hashlib
import hmac
import os
import struct

from connpool.transfer.send.keys import HeldRun, SenderKeys


def test_aSaltMakesAnotherKeyAlsoAfterARestart(tmp_path):
    """
    For a file that looks the same and is not.
    """
    status = os.stat(tmp_path)
    keys = set()
    for salts in ({}, {b"/a": b"salt"}, {b"/b": b"salt"}):
        run = SenderKeys(tmp_path / "state").begin("to")
        held = HeldRun(run, salts)
        keys.add(held.key(b"/a", status, b"a"))
        assert held.begin("to") is held
        held.end(True)
        run.end(False)
    assert len(keys) == 2


def begun(tmp_path, secret):
    """
    The unfinished run of a process that has ended.
    """
    SenderKeys(tmp_path).begin("to").end(True)
    name = hashlib.sha256(b"to").hexdigest()[:32] + ".0123456789abcdef"
    (tmp_path / "runs" / name).write_bytes(secret)
    return SenderKeys(tmp_path).begin("to")


def test_aRunOfVersion010GoesOnWithItsKeys(tmp_path):
    status = os.stat(tmp_path)
    run = begun(tmp_path, b"s" * 32)
    fingerprint = struct.pack(
        ">QQQqq",
        *(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
    )
    parts = [b"key", b"to", b"/a", fingerprint, b"a", b"r" * 32]
    text = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    assert run.key(b"/a", status, b"a", b"r" * 32) == hmac.digest(b"s" * 32, text, "sha256")
    run.end(True)
    assert list((tmp_path / "runs").iterdir()) == []


def test_aRunIsTakenUp(tmp_path):
    status = os.stat(tmp_path)
    run = SenderKeys(tmp_path).begin("to")
    key = run.key(b"/a", status, b"a")
    # of one secret no key of ours is one of version 0.1.0
    [kept] = (tmp_path / "runs").iterdir()
    assert len(kept.read_bytes()) == 33
    run.end(False)
    run = SenderKeys(tmp_path).begin("to")
    assert run.key(b"/a", status, b"a") == key
    run.end(False)
    kept.write_bytes(kept.read_bytes()[:32])
    run = SenderKeys(tmp_path).begin("to")
    assert run.key(b"/a", status, b"a") != key
    run.end(True)


def test_whatIsNoSecretIsLeftAlone(tmp_path):
    for secret in (b"", b"s" * 31, b"s" * 33, b"s" * 32 + b"\x03", b"s" * 34):
        run = begun(tmp_path, secret)
        assert not run.resumable or len(list((tmp_path / "runs").iterdir())) == 2
        run.end(True)


def test_partsCannotBeShifted(tmp_path):
    """
    No two lists of parts have one key.
    """
    status = os.stat(tmp_path)
    run = SenderKeys(tmp_path / "state").begin("to")
    asked = [(b"ab", b"c", b""), (b"a", b"bc", b""), (b"ab", b"", b"c"), (b"abc", b"", b"")]
    assert len({run.key(path, status, name, root) for path, name, root in asked}) == 4
    run.end(True)
