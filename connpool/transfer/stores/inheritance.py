"""
The mode, group and access control list of a published file.

Theory of operation
===================
A file is written among the private ones, so the kernel cannot give it what its
directory hands down to files that are made there.  That is done here, as
C{open(2)} does it: the group of a setgid directory, and the default ACL with
C{mode} taken off it.  A process may not give a file to a group that it is not
in; then only a copy that is made in the directory itself can have that group.
"""

from __future__ import annotations

import stat
import struct

from connpool.transfer.syscalls import Syscalls

__all__ = ["defaultAclOf", "inherit", "refuseInheritance"]

_ACCESS = "system.posix_acl_access"
_DEFAULT = "system.posix_acl_default"
#: An ACL is a version and entries of tag, permissions and id, as in Linux'
#: C{posix_acl_xattr.h}.
_HEADER = 4
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20


def inherit(syscalls: Syscalls, fd: int, directory: int, mode: int) -> bool:
    """
    Give a file what a new one in C{directory} would have.

    @param mode: permission bits, whatever the umask.
    @return: C{False} if only a file that is made in C{directory} can have it.
    """
    whole = True
    parent = syscalls.fstat(directory)
    if parent.st_mode & stat.S_ISGID and syscalls.fstat(fd).st_gid != parent.st_gid:
        try:
            syscalls.fchown(fd, -1, parent.st_gid)
        except PermissionError:
            whole = False
    acl = defaultAclOf(syscalls, directory)
    if acl is not None:
        try:
            syscalls.setxattr(fd, _ACCESS, _masked(acl, mode))
        except OSError:  # the file lies on a file system without ACLs
            whole = False
        else:
            return whole
    syscalls.fchmod(fd, mode)
    return whole


def defaultAclOf(syscalls: Syscalls, directory: int) -> bytes | None:
    """
    @return: the default ACL as Linux keeps it; L{None} if there is none.
    """
    try:
        acl: bytes = syscalls.getxattr(directory, _DEFAULT)
    except OSError:
        return None
    return acl


def refuseInheritance(syscalls: Syscalls, directory: int) -> None:
    """
    Let a private directory hand nothing down: what its own parent gave it would
    come along with the files that are published elsewhere.
    """
    mode = syscalls.fstat(directory).st_mode
    if mode & stat.S_ISGID:
        syscalls.fchmod(directory, mode & 0o777)
    if defaultAclOf(syscalls, directory) is not None:
        syscalls.removexattr(directory, _DEFAULT)


def _masked(acl: bytes, mode: int) -> bytes:
    """
    @return: the ACL of a file that is made with C{mode}.
    """
    entries = list(_ENTRY.iter_unpack(acl[_HEADER:]))
    # the mask, where there is one, limits the group's entry and all named ones
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    most = {_USER_OBJ: mode >> 6, group: mode >> 3, _OTHER: mode}
    return acl[:_HEADER] + b"".join(
        _ENTRY.pack(tag, allowed & most.get(tag, 7), whose) for tag, allowed, whose in entries
    )
