"""
A store whose disk takes no writes any more says so, and that it does again.
"""

import errno
import os

import pytest

from connpool.transfer.stores.writability import TRY_SECONDS
from tests.transfer.stores.test_local import inline


def refusing(number, tries):
    """
    A file system that refuses to set times.
    """

    def before(called, arguments, keywords):
        if called == "utime":
            tries.append(called)
            if number:
                raise OSError(number, os.strerror(number))

    return before


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.EACCES])
def test_aDiskThatTakesNoWrites(root, number):
    store, clock, syscalls = inline(root)
    assert store.trouble() is None
    tries = []
    syscalls.before = refusing(number, tries)
    for _ in range(5):
        assert store.trouble() is None
    assert tries == []  # not at every question
    clock.now += TRY_SECONDS
    assert os.strerror(number) in store.trouble()
    assert str(root) in store.trouble()
    syscalls.before = refusing(0, tries)
    assert store.trouble() is not None
    clock.now += TRY_SECONDS
    assert store.trouble() is None
    assert len(tries) == 2
    clock.wait(store.close())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENOENT])
def test_whatPassesIsNoBrokenDisk(root, number):
    store, clock, syscalls = inline(root)
    tries = []
    syscalls.before = refusing(number, tries)
    clock.now += TRY_SECONDS
    assert store.trouble() is None
    assert tries
    clock.wait(store.close())
    assert store.trouble() is None
