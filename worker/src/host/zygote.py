"""A process that has imported what sessions need, and forks an interpreter whenever the host asks.

Started as `python -c <bootstrap>` in a venv of its own, with descriptor 3, which holds the sources of `runner.py` and
of this file, and descriptor 4, a control socket framed as the runner's. The host sends {"fork": number} with two
descriptors, the interpreter's control socket and its subreaper's report socket; the answer is {"forked": number,
"pid": the subreaper's}. The subreaper is made with CLONE_PARENT, which makes it the host's own child; it forks the
interpreter. An interpreter waits, running no code of anybody's, for two messages. The first gives it its place, and may come
long before there is a session:

    {"cwd", "confinement": {"uid", "entrances", "namespaces", "own": [[directory, place]], "landlock", "notify", "filter"}}

The second is the claim of a session, whose interpreter it is from then on:

    {"env": {}, "prefix", "site", "limits": [[resource, value]]}

`filter` and `notify` are seccomp programs (base64 of struct sock_filter[]). Beside the first come descriptors: as many as it says of files
of control groups, two of namespaces (mounts, network) if there are any, the Landlock ruleset if there is one, and with `notify` the socket
that its listener goes to. What is
done with them is what `Launch::exec` and `Confinement` do for every other process, in the same order.

`runner` is the module of `runner.py`, `settings` what the host said at the start: {"preload": [module], "path": [dir]}.
"""

import ctypes
import gc
import os
import resource
import select
import signal
import sys

# Not for sessions to import.
runner = sys.modules.pop("cooper.runner")

CLONE_PARENT = 0x8000
CLOSED_ABOVE = 1 << 20
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_SECCOMP = 1, 4, 15, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}
SECCOMP_SET_MODE_FILTER, NEW_LISTENER, WAIT_KILLABLE = 1, 1 << 3, 1 << 5
LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 445, 446
# LANDLOCK_ACCESS_FS_READ_FILE and _READ_DIR
LANDLOCK_READ = 1 << 2 | 1 << 3
CLONE_NEWNS, CLONE_NEWNET, MS_BIND = 0x20000, 0x40000000, 4096
SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
SFD_NONBLOCK_CLOEXEC = 0o2004000
# Where every interpreter of this Python finds its standard library.
STANDARD = [place for place in sys.path if place and not place.startswith(sys.prefix + "/")]

# Names of what was imported from a layer.
LAYERED = []
# It holds the interpreter's lock while it calls: what is called forks.
python = ctypes.PyDLL(None, use_errno=True)
libc = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def checked(result):
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def prctl(option, value=0, more=None):
    wide = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    checked(libc.prctl(option, wide, more, None, None))


def clone(flags):
    return python.syscall(ctypes.c_long(SYS_CLONE[os.uname().machine]), ctypes.c_ulong(flags | signal.SIGCHLD), None, None,
                          None, None)


def sibling():
    """Forks a child of this process's parent. The child owes its interpreter PyOS_AfterFork_Child: a subreaper, which
    imports nothing and starts no thread, leaves that to its own child and so keeps half a megabyte less to itself."""
    python.PyOS_BeforeFork()
    pid = clone(CLONE_PARENT)
    if pid != 0:
        python.PyOS_AfterFork_Parent()
    return pid


def threads():
    return len(os.listdir("/proc/self/task"))


def close_all_except(keep):
    first = 0
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, CLOSED_ABOVE)


def preload(settings):
    sys.path.extend(settings["path"])
    for name in settings["preload"]:
        try:
            __import__(name)
        except Exception:
            pass
    for name, module in list(sys.modules.items()):
        if "." not in name and (getattr(module, "__file__", None) or "").startswith(tuple(settings["path"]) or "\0"):
            LAYERED.append(name)
    # It remembers the prefix of whoever imported it first.
    sys.modules.pop("sysconfig", None)
    # What every execution does is done once, so that its pages and caches are there.
    runner.warm_up()
    gc.collect()
    # What is alive now is never looked at again by the collector, which would otherwise copy it into every fork.
    gc.disable()
    gc.freeze()


def serve(settings):
    prctl(PR_SET_NAME, b"cooper-zygote")
    control = runner.Control(4)
    preload(settings)
    control.send({"threads": threads(), "tier": settings["tier"]})
    while True:
        request = control.receive()
        if request is None:
            os._exit(0)
        message, fds = request
        pid = sibling()
        if pid == 0:
            reap(*fds)
        for fd in fds:
            os.close(fd)
        if pid < 0:
            control.send({"failed": message["fork"]})
        else:
            control.send({"forked": message["fork"], "pid": pid})


def reap(control, reports):
    """The subreaper of one interpreter: what `reaper.rs` is for every other child. It never returns."""
    code = 1
    try:
        # In this order: what is called a zygote and leads a session of its own is one.
        prctl(PR_SET_NAME, b"cooper-reaper")
        os.setsid()
        close_all_except([control, reports])
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        # Until the interpreter is there, the host's death is this process's too; afterwards it has somebody to end first.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = clone(0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "fork")
        if child == 0:
            python.PyOS_AfterFork_Child()
            os.close(reports)
            interpret(control)
        os.close(control)
        prctl(PR_SET_PDEATHSIG, 0)
        tell(reports, runner.STARTED, child)
        watch(child, reports)
        code = 0
    finally:
        os._exit(code)


def tell(reports, *words):
    try:
        runner.report(reports, *words)
    except OSError:
        pass  # the host is gone: the loop sees that as well


def watch(child, reports):
    """Until nothing is left beneath, or the host is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    mask = ctypes.c_uint64(1 << (signal.SIGCHLD - 1))
    signals = checked(libc.signalfd(-1, ctypes.byref(mask), SFD_NONBLOCK_CLOEXEC))
    events = select.poll()
    events.register(signals, select.POLLIN)
    events.register(reports, 0)
    while True:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                break
            if pid == child:
                cpu = usage.ru_utime + usage.ru_stime
                tell(reports, runner.EXITED, status, int(cpu * 1000), usage.ru_maxrss * 1024)
        for fd, _ in events.poll():
            if fd == signals:
                os.read(signals, 4096)
            else:
                kill_all()


def kill_all():
    while True:
        found = [pid for pid in descendants(os.getpid()) if alive(pid)]
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
            pass
        select.select([], [], [], 0.001)


def descendants(root):
    found, parents = [], [str(root)]
    while parents:
        parent = parents.pop()
        try:
            for thread in os.listdir("/proc/%s/task" % parent):
                with open("/proc/%s/task/%s/children" % (parent, thread)) as file:
                    parents += file.read().split()
        except OSError:
            pass
        found.append(int(parent))
    return found[1:]


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def interpret(control):
    """An interpreter, from the fork over the claim to its end."""
    try:
        parent = os.getppid()
        os.setsid()
        os.umask(0o022)
        prctl(PR_SET_NAME, b"python")
        # A session's own process ends with its subreaper.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open("/dev/null", os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        os.close(null)
        socket = runner.Control(control)
        session = runner.Runner(socket)
        settle, fds = expected(socket, parent)
        confine(settle["confinement"], fds, settle["cwd"], parent)
        reseed()
        # Once more, now for the pages that every fork has to itself.
        runner.warm_up()
        claim, _ = expected(socket, parent)
        limit(claim["limits"])
        inhabit(claim)
        gc.enable()
        session.run_session(LAYERED)
    finally:
        os._exit(1)


def expected(socket, parent):
    """The next message; the end, when whoever would send it is gone."""
    request = socket.receive()
    if request is None or os.getppid() != parent:
        os._exit(0)
    return request


def confine(confinement, fds, cwd, parent):
    """Gives up what a session must not have. The order matters: each step needs what the next one takes away."""
    left = list(fds)
    for _ in range(confinement["entrances"]):
        os.write(left.pop(0), b"0")
    if confinement["namespaces"]:
        mounts, network = left.pop(0), left.pop(0)
        checked(libc.setns(network, CLONE_NEWNET))
        checked(libc.setns(mounts, CLONE_NEWNS))
        if confinement["own"]:
            checked(libc.unshare(CLONE_NEWNS))
        for directory, place in confinement["own"]:
            checked(libc.mount(os.fsencode(directory), os.fsencode(place), None, ctypes.c_ulong(MS_BIND), None))
    uid = confinement["uid"]
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # A change of identity takes these along: its own /proc files, and the bond to the subreaper.
        prctl(PR_SET_DUMPABLE, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
    os.chdir(cwd)
    if confinement["landlock"] or confinement["notify"] or confinement["filter"]:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    if confinement["landlock"]:
        restrict(left.pop(0), "/proc" if confinement["namespaces"] else "/proc/self/.")
    if confinement["notify"]:
        intercept(runner.binascii.a2b_base64(confinement["notify"]), left.pop(0))
    for fd in fds:
        os.close(fd)
    if confinement["filter"]:
        seccomp(runner.binascii.a2b_base64(confinement["filter"]))


def limit(limits):
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def restrict(ruleset, processes):
    """Landlock, with a rule for the processes it may see (see `landlock::own_processes`)."""
    place = os.open(processes, os.O_PATH | os.O_CLOEXEC)
    rule = LANDLOCK_READ.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
    checked(libc.syscall(ctypes.c_long(LANDLOCK_ADD_RULE), ctypes.c_int(ruleset), ctypes.c_int(1), rule,
                         ctypes.c_uint(0)))
    os.close(place)
    checked(libc.syscall(ctypes.c_long(LANDLOCK_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint(0)))


def intercept(instructions, socket):
    """Has its connects answered by whoever gets the listener (see `notify::intercept`)."""
    program = Filter(len(instructions) // 8, instructions)
    number = SYS_SECCOMP[os.uname().machine]
    for flags in (NEW_LISTENER | WAIT_KILLABLE, NEW_LISTENER):
        listener = libc.syscall(ctypes.c_long(number), ctypes.c_ulong(SECCOMP_SET_MODE_FILTER), ctypes.c_ulong(flags),
                                ctypes.byref(program))
        if listener >= 0:
            break
    checked(listener)
    way = runner._socket.socket(fileno=os.dup(socket))
    # A packet of `frame`: its flag byte and an empty body.
    way.sendmsg([b"\0"], [(runner._socket.SOL_SOCKET, runner._socket.SCM_RIGHTS, runner.struct.pack("=i", listener))])
    way.close()
    os.close(listener)


def seccomp(instructions):
    program = Filter(len(instructions) // 8, instructions)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))


def inhabit(claim):
    """Makes this the interpreter of the session's venv, as if it had been started there."""
    import site

    prefix = claim["prefix"]
    os.environ.clear()
    os.environ.update(claim["env"])
    runner.time.tzset()
    sys.prefix = sys.exec_prefix = prefix
    sys.executable = prefix + "/bin/python"
    sys.orig_argv = [sys.executable, "-c", ""]
    site.PREFIXES = [prefix]
    here = claim["site"]
    # What is preloaded from elsewhere is found again by the venv's .pth files.
    sys.path[:] = [place for place in sys.path if place in STANDARD]
    if any(name.endswith(".pth") or "customize" in name for name in os.listdir(here)):
        # The session's own code may run in here.
        site.addsitedir(here)
        site.execsitecustomize()
    else:
        sys.path.append(here)
    sys.path.insert(0, "")


def reseed():
    """Forks of one process must not draw the same numbers. `random` and OpenSSL (from 1.1.1 on) see a fork by themselves."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        uuid._last_timestamp = None
