# SPDX-License-Identifier: Apache-2.0
"""Makes a thread of a running process carry out a system call of our choice, as somebody would who has taken it over."""

from __future__ import annotations

import ctypes
import os
import signal

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long

CONT, SINGLESTEP, GETREGS, SETREGS, DETACH, SEIZE, INTERRUPT = 7, 9, 12, 13, 17, 0x4206, 0x4207
WALL = 0x40000000
SYSCALL_INSTRUCTION = b"\x0f\x05"
REGISTERS = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
             "ds es fs gs").split()


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS]


def ptrace(request: int, thread: int, data: object = None) -> None:
    if LIBC.ptrace(request, thread, None, ctypes.addressof(data) if isinstance(data, Registers) else None) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}, {thread})")


def inject(process: int, thread: int, number: int, *arguments: int) -> signal.Signals | int:
    """The thread must be asleep in a system call; it sleeps on afterwards. @return the signal that the call raised, in the
    thread or as the end of the process; or else what the call returned"""
    ptrace(SEIZE, thread)
    ptrace(INTERRUPT, thread)
    os.waitpid(thread, WALL)
    before, changed = Registers(), Registers()
    ptrace(GETREGS, thread, before)
    ptrace(GETREGS, thread, changed)
    with open(f"/proc/{process}/mem", "rb") as memory:
        memory.seek(before.rip - len(SYSCALL_INSTRUCTION))
        assert memory.read(len(SYSCALL_INSTRUCTION)) == SYSCALL_INSTRUCTION, "the thread is not in a system call"
    changed.rip = before.rip - len(SYSCALL_INSTRUCTION)
    changed.rax, changed.orig_rax = number, ctypes.c_ulonglong(-1).value
    for name, value in zip(("rdi", "rsi", "rdx", "r10"), arguments):
        setattr(changed, name, ctypes.c_ulonglong(value).value)
    ptrace(SETREGS, thread, changed)
    ptrace(SINGLESTEP, thread)
    _, status = os.waitpid(thread, WALL)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status))
    stopped_by = signal.Signals(os.WSTOPSIG(status))
    if stopped_by != signal.SIGTRAP:
        ptrace(CONT, thread)  # without that signal; the one of the single step is still to come, and must not be left over
        os.waitpid(thread, WALL)
    ptrace(GETREGS, thread, changed)
    ptrace(SETREGS, thread, before)
    ptrace(DETACH, thread)
    return ctypes.c_longlong(changed.rax).value if stopped_by == signal.SIGTRAP else stopped_by
