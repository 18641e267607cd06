"""Files taken from the decoder's process: it can change none, read none of /proc, and signal nobody.

Linux's Landlock does it without privileges (https://docs.kernel.org/userspace-api/landlock.html), for this thread and those it starts from
then on. What was open stays open. Not covered: reading the user's other files, as a video may lie anywhere (docs/threat-model.md).
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on all architectures
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3  # LANDLOCK_ACCESS_FS_*
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""ABI -> how many rights to files it knows; later ones know 16."""
_NUM_RIGHTS_NOW = 16
_SCOPED_ABI, _SCOPES = 6, 0b11  # abstract sockets, signals
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4  # linux/prctl.h

_CLOSED = frozenset(("proc",))
"""Not to be read: the environments and the memory of the user's other processes."""


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr; an older kernel takes a shorter one."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def forbid_changes() -> str | None:
    """Take all changes of files, and /proc, from this process for good, and from all threads that it starts from now on.

    None if that is done, else why this machine cannot do it. Then at least no file grows by its hand, and no process of the same user can
    look into it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _restrict(libc)
    except OSError as error:
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return f"this kernel has no Landlock for us ({error.strerror})"
    return None


def _restrict(libc: ctypes.CDLL) -> None:
    abi = _call(libc, _CREATE_RULESET, None, 0, _VERSION)
    handled = (1 << _NUM_RIGHTS.get(abi, _NUM_RIGHTS_NOW)) - 1
    is_scoped = abi >= _SCOPED_ABI
    attributes = _Ruleset(handled, 0, _SCOPES if is_scoped else 0)
    size = ctypes.sizeof(_Ruleset) if is_scoped else ctypes.sizeof(ctypes.c_uint64)
    ruleset = _call(libc, _CREATE_RULESET, ctypes.byref(attributes), size, 0)
    try:
        for name in sorted(set(os.listdir("/")) - _CLOSED):
            _allow_reading(libc, ruleset, f"/{name}")
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise _last_error()
        _call(libc, _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # a link to nowhere, a dead mount
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(place).st_mode)
        rule = _Beneath(_READ_FILE | (_READ_DIR if is_folder else 0), place)
        _call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(place)


def _call(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    result: int = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments))
    if result < 0:
        raise _last_error()
    return result


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
