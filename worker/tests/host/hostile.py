# Run in a session: everything here must fail. What did not is listed in `escaped`.
import ctypes, errno, os, resource, signal, socket

libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
escaped = []


def refused(what, attempt):
    try:
        result = attempt()
    except OSError:
        return
    escaped.append("%s: %r" % (what, result))


def call(number, *arguments):
    arguments = [a if isinstance(a, (bytes, type(None))) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def read(path):
    with open(path, "rb") as file:
        return file.read(100)


def write(path):
    with open(path, "ab") as file:
        return file.write(b"x")


# 6, 7: other processes and the secrets in them
for name in ("environ", "cmdline", "maps", "mem", "status"):
    refused("/proc/parent/" + name, lambda: read("/proc/%d/%s" % (parent, name)))
    refused("/proc/1/" + name, lambda: read("/proc/1/" + name))
for name in ("fd", "cwd", "root"):
    refused("/proc/parent/" + name, lambda: os.listdir("/proc/%d/%s" % (parent, name)))
# 8: signals
for number in (0, signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
    refused("kill", lambda: os.kill(parent, number))
    refused("kill 1", lambda: os.kill(1, number))
# 9: tracing and its relatives, limits and priorities of others
for name, number, arguments in (
    ("ptrace", 101, (16, parent, 0, 0)),
    ("process_vm_readv", 310, (parent, None, 0, None, 0, 0)),
    ("kcmp", 312, (parent, os.getpid(), 0, 0, 0)),
    ("pidfd_getfd", 438, (0, 0, 0)),
    ("perf_event_open", 298, (None, 0, -1, -1, 0)),
    ("userfaultfd", 323, (1,)),
    ("bpf", 321, (0, None, 0)),
    ("keyctl", 250, (0, -3, 0, 0, 0)),
    ("io_uring_setup", 425, (1, None)),
    ("unshare", 272, (0x10000000,)),
    ("setns", 308, (0, 0)),
    ("mount", 165, (b"x", b"/tmp", b"tmpfs", 0, None)),
    ("chroot", 161, (b".",)),
    ("open_by_handle_at", 304, (0, None, 0)),
    ("shmget", 29, (0, 4096, 0o1600)),
    ("semget", 64, (0, 1, 0o1600)),
    ("msgget", 68, (0, 0o1600)),
    ("mq_open", 240, (b"x", 0o102, 0o600, None)),
    ("clone3", 435, (None, 0)),
    ("personality", 135, (0x0040000,)),
    ("prlimit", 302, (parent, 7, None, ctypes.create_string_buffer(16).raw)),
    ("setpriority", 141, (0, parent, 19)),
    ("setpriority of users", 141, (2, 0, 19)),
    ("sched_setaffinity", 203, (parent, 8, b"\1\0\0\0\0\0\0\0")),
    ("ioprio_set", 251, (1, parent, 0x6000)),
    ("setuid", 105, (0,)),
):
    refused(name, lambda: call(number, *arguments))
# 5, 10, 11: files of the machine, of the worker, of siblings
for path in ("/etc/shadow", "/root", "/home", sibling, sibling + "/secret", base, worker, worker + "/host.lock"):
    refused(path, lambda: os.listdir(path) if os.path.isdir(path) else read(path))
for path in (sibling + "/secret", worker + "/host.lock", "/etc/passwd", "/usr/bin/env"):
    refused("write " + path, lambda: write(path))
    refused("chmod " + path, lambda: os.chmod(path, 0o777))
    refused("link " + path, lambda: os.link(path, "hardlink"))
for path in ("/etc/x", "/usr/x", "/var/x", "/run/lock/x", "/dev/mqueue/x", "/x", base + "/x", worker + "/x"):
    refused("write " + path, lambda: write(path))
os.symlink(sibling + "/secret", "link")
refused("symlink", lambda: read("link"))
# 16, 17, 18, 19: sockets
for family in (socket.AF_UNIX, socket.AF_NETLINK, 17, 38, 40):
    refused("socket %d" % family, lambda: socket.socket(family, socket.SOCK_STREAM))
for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
    refused("inet %d" % kind, lambda: socket.socket(socket.AF_INET, kind))
refused("mptcp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
refused("datagram pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(2)
        tcp.connect(address)
        # Where a connect is answered by the proxy, it is the proxy that refuses.
        tcp.sendall(b"GET / HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (address[0].encode(), address[1]))
        answer = tcp.recv(4096)
        if not answer or answer.startswith(b"HTTP/1.1 403 Forbidden\r\n"):
            raise PermissionError(errno.EACCES, "refused by the proxy")


refused("loopback", lambda: connect(socket.AF_INET, ("127.0.0.1", port)))
refused("mapped loopback", lambda: connect(socket.AF_INET6, ("::ffff:127.0.0.1", port)))
refused("metadata", lambda: connect(socket.AF_INET, ("169.254.169.254", 80)))
# 22: core dumps
resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) or escaped.append("core")
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
status["CapEff"].strip("0") == "" or escaped.append("capabilities")
status["NoNewPrivs"] == "1" or escaped.append("new privileges")
os.getuid() >= 1000 and os.getgroups() == [] or escaped.append("identity")

# What must go on working.
import asyncio, concurrent.futures, subprocess, tempfile, threading

assert subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True).stdout == b"42\n"
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(abs, range(-9, 0))) == 45


async def child():
    process = await asyncio.create_subprocess_exec("cat", "/proc/cpuinfo", stdout=subprocess.PIPE)
    return len((await process.communicate())[0])


assert await child() > 0
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
os.rename("link", "moved")
os.unlink("moved")
assert os.cpu_count() >= 1 and os.listdir("/proc/self/fd")
escaped
