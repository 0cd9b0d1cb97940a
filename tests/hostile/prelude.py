# Before every case. `known` says where things are; what is in `escaped` at the end should not have been possible.
import ctypes, errno, os, resource, signal, socket, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
escaped = []


def refused(what, attempt):
    try:
        result = attempt()
    except (OSError, subprocess.SubprocessError, RuntimeError, MemoryError):
        return
    escaped.append("%s: %.200r" % (what, result))


def call(number, *arguments):
    arguments = [a if isinstance(a, (bytes, type(None))) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def report():
    print("escaped:" if escaped else "contained", *escaped, sep="\n")
