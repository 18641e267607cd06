"""The decoder's process made small: no secrets in its environment, no sockets, no other programs. A decoder that a file has taken over can
then not call home.

Linux's seccomp filters do it without privileges. Covered: sockets, io_uring (which could make some), other programs, `ptrace` and its
like, other ABIs. Files and signals are `rbft.video.landlock`'s.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

_PASSED_ON = frozenset(("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR", "TZ"))
"""Of the parent's environment: what an interpreter needs to find itself. No keys of stores, clusters and models."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO | EPERM, _KILL_PROCESS
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h: BPF_LD | W | ABS and so on
_X32 = 0x40000000
"""Calls of x86-64's other ABI have numbers from here on."""

_CALLS = {
    # AUDIT_ARCH_*, then the numbers of socket, connect, socketpair, execve, execveat, ptrace, process_vm_readv, process_vm_writev,
    # io_uring_setup (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
    "x86_64": (0xC000003E, (41, 42, 53, 59, 322, 101, 310, 311, 425)),
    "aarch64": (0xC00000B7, (198, 203, 199, 221, 281, 117, 270, 271, 425)),
}


class _Instruction(ctypes.Structure):
    """struct sock_filter"""

    _fields_ = (("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables of `environment` that a decoder may know."""
    return {name: value for name, value in environment.items() if name in _PASSED_ON or name.startswith("LC_")}


def forbid_calls() -> str | None:
    """Take sockets and other programs from this process for good, and from all threads that it starts from now on.

    None if that is done, else why this machine cannot do it.
    """
    machine = platform.machine()
    if machine not in _CALLS:
        return f"no filter of system calls is known for {machine}"
    architecture, refused = _CALLS[machine]
    steps = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_JUMP_IF_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE)]
    for number in refused:
        steps += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    program = _Program(len(steps), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        return f"system calls cannot be filtered here ({os.strerror(ctypes.get_errno())})"
    return None
