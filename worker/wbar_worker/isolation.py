"""A process that reads strangers' files gives up what it does not need: the network, other programs, other processes, rights.

Files stay as they are: it reads and writes those of its user. Only Linux keeps such promises; each part that the kernel or
a container refuses is left out and logged, since the readers are safe by themselves and this is the second wall. In the
order in which they are tried:

1. no_new_privs: no program started from here gains rights.
2. a network namespace of its own, in which there is not even a loopback address;
3. its memory and environment are closed to other readers; after 2, which writes files of this process that this takes away;
4. no capabilities: as root it then owns what root owns, and nothing more; the memory of the worker, which has more, is closed;
5. a seccomp filter, which answers EPERM to the system calls below, whoever makes them in this process.

`isolate` must run while the process has one thread: threads that run already keep their rights.
"""

import ctypes
import errno
import logging
import os
import platform
import struct
from pathlib import Path

from wbar_store.process_memory import close_memory

log = logging.getLogger("wbar.worker")

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2
_CAPABILITY_VERSION = 0x20080522
_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_UNIX = 1  # the family of socketpairs, multiprocessing's pipes among them

# Architecture as the kernel numbers it, and its numbers of the calls, from its <asm/unistd.h>.
_MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288, "execve": 59, "execveat": 322,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "unshare": 272, "setns": 308,
        "mount": 165, "bpf": 321, "keyctl": 250, "add_key": 248, "userfaultfd": 323, "perf_event_open": 298,
        "io_uring_setup": 425, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "pidfd_send_signal": 424,
    }),
    "aarch64": (0xC00000B7, {
        "socket": 198, "connect": 203, "accept": 202, "bind": 200, "listen": 201, "accept4": 242, "execve": 221,
        "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_getfd": 438, "unshare": 97,
        "setns": 268, "mount": 40, "bpf": 280, "keyctl": 219, "add_key": 217, "userfaultfd": 282, "perf_event_open": 241,
        "io_uring_setup": 425, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "pidfd_send_signal": 424,
    }),
}  # fmt: skip


def isolate() -> list[str]:
    """Give up network, programs and other processes; return the parts that took hold: see the module.

    Never raises: what the platform refuses is logged.
    """
    if platform.system() != "Linux":
        log.debug("uploads are read without isolation: it needs Linux")
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    held = []
    for name, part in (
        ("no_new_privs", _no_new_privs),
        ("network", _no_network),
        ("memory", _no_readers),
        ("capabilities", _no_capabilities),
        ("seccomp", _filter_calls),
    ):
        try:
            part(libc)
            held.append(name)
        except (OSError, AttributeError, KeyError) as error:
            log.debug("uploads are read without %s: %s", name, error)
    return held


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _no_new_privs(libc: ctypes.CDLL) -> None:
    _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))


def _no_network(libc: ctypes.CDLL) -> None:
    try:
        _check(libc.unshare(_NEW_NET))  # as root
    except OSError:
        user, group = os.getuid(), os.getgid()
        _check(libc.unshare(_NEW_USER | _NEW_NET))
        # The same numbers inside, so that files are owned as before; the rights over the namespace end with the filter.
        for name, content in (
            ("uid_map", f"{user} {user} 1"),
            ("setgroups", "deny"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path("/proc/self", name).write_text(content)


def _no_readers(_libc: ctypes.CDLL) -> None:
    close_memory()


def _no_capabilities(libc: ctypes.CDLL) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)  # of this process
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()))  # effective, permitted, inheritable; 64 bits of each


def _filter_calls(libc: ctypes.CDLL) -> None:
    machine, calls = _MACHINES[platform.machine()]
    program = _program(machine, calls)
    instructions = b"".join(struct.pack("<HBBL", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    filtering = Program(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    _check(libc.prctl(_SECCOMP, _FILTER, ctypes.byref(filtering), 0, 0))


def _program(machine: int, calls: dict[str, int]) -> list[tuple[int, int, int, int]]:
    """Return the filter in classic BPF, as (code, jump if true, jump if false, constant)."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    # Allowed with this first argument: a socket of the family of pipes, and abort(), which signals its own process.
    only = {"socket": _UNIX, "tgkill": os.getpid()}
    # struct seccomp_data: the number at byte 0, the architecture at 4, the low half of the first argument at 16.
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, machine),
        (answer, 0, 0, _KILL),  # calls of another architecture have other numbers
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # x32, the same kernel by other numbers
        (answer, 0, 0, _EPERM),
    ]
    for name, number in sorted(calls.items()):
        if name in only:
            program += [(equal, 0, 4, number), (load, 0, 0, 16), (equal, 0, 1, only[name]), (answer, 0, 0, _ALLOW)]
            program += [(answer, 0, 0, _EPERM)]
        else:
            program += [(equal, 0, 1, number), (answer, 0, 0, _EPERM)]
    return [*program, (answer, 0, 0, _ALLOW)]
