# 8, 9: signals to, and looks into, processes that are not its own
parent = os.getppid()
for pid in {parent, 1, known["worker"], known["coordinator"]}:
    if pid <= 0 or pid == os.getpid():
        continue
    for number in (0, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM):
        try:
            os.kill(pid, number)
        except OSError:
            continue
        # In a process namespace of its own, and at T0 its own subreaper, a pid may be its own.
        if pid != parent:
            escaped.append("signal %d to %d" % (number, pid))
    # 129 and 234 are those of x86-64; elsewhere they are others that are refused for their arguments.
    information = ctypes.create_string_buffer(signal.SIGTERM.to_bytes(4, "little") + b"\0\0\0\0" + b"\xff\xff\xff\xff", 128).raw
    if pid != parent:
        refused("rt_sigqueueinfo to %d" % pid, lambda: call(129, pid, signal.SIGCONT, information))
        refused("tgkill of %d" % pid, lambda: call(234, pid, pid, signal.SIGCONT))
        try:
            other = os.pidfd_open(pid)
        except OSError:
            pass
        else:
            refused("pidfd_send_signal to %d" % pid, lambda: signal.pidfd_send_signal(other, signal.SIGCONT))
            refused("pidfd_getfd of %d" % pid, lambda: call(438, other, 0, 0))
            os.close(other)
    for name, number, arguments in (
        ("ptrace", 101, (16, pid, 0, 0)),
        ("process_vm_readv", 310, (pid, None, 0, None, 0, 0)),
        ("process_vm_writev", 311, (pid, None, 0, None, 0, 0)),
        ("kcmp", 312, (pid, os.getpid(), 0, 0, 0)),
        ("prlimit", 302, (pid, 7, None, ctypes.create_string_buffer(16).raw)),
        ("sched_setaffinity", 203, (pid, 8, b"\1\0\0\0\0\0\0\0")),
        ("setpriority", 141, (0, pid, 19)),
        ("ioprio_set", 251, (1, pid, 0x6000)),
        ("migrate_pages", 256, (pid, 8, b"\0" * 8, b"\0" * 8)),
    ):
        refused("%s of %d" % (name, pid), lambda: call(number, *arguments))
for name, number, arguments in (
    ("pidfd_getfd", 438, (0, 0, 0)),
    ("process_madvise", 440, (0, None, 0, 0, 0)),
    ("perf_event_open", 298, (None, 0, -1, -1, 0)),
    ("userfaultfd", 323, (1,)),
):
    refused(name, lambda: call(number, *arguments))
report()
