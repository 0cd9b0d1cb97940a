# 20, 21: more rights, other kernels' doors
import mmap

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
for name, number, arguments in (
    ("setuid", 105, (0,)),
    ("unshare user", 272, (0x10000000,)),
    ("unshare mounts", 272, (0x20000,)),
    ("setns", 308, (0, 0)),
    ("mount", 165, (b"x", b"/tmp", b"tmpfs", 0, None)),
    ("chroot", 161, (b".",)),
    ("pivot_root", 155, (b".", b".")),
    ("keyctl", 250, (0, -3, 0, 0, 0)),
    ("bpf", 321, (0, None, 0)),
    ("open_by_handle_at", 304, (0, None, 0)),
    ("kexec_load", 246, (0, 0, None, 0)),
    ("init_module", 175, (None, 0, b"")),
    ("reboot", 169, (0xFEE1DEAD, 672274793, 0, 0)),
    ("swapon", 167, (b"x", 0)),
    ("clone3", 435, (None, 0)),
    ("personality", 135, (0x0040000,)),
    ("acct", 163, (b"x",)),
    ("syslog", 103, (3, None, 0)),
    ("quotactl", 179, (0, None, 0, None)),
    ("sethostname", 170, (b"x", 1)),
):
    refused(name, lambda: call(number, *arguments))
for command in (["su", "-c", "id"], ["mount", "-t", "tmpfs", "x", "/mnt"], ["unshare", "-r", "id"]):
    refused(command[0], lambda: subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=10))


def by_interrupt():
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, getpid; int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


def by_number():
    return call(0x40000000 + 39)


# The calls of the 32-bit kernel, and of x32: who makes one is killed.
for attempt in (by_interrupt, by_number) if os.uname().machine == "x86_64" else ():
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if attempt() == os.getpid() else 1)
        except BaseException:
            os._exit(1)
    _, ended = os.waitpid(pid, 0)
    if os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == 0:
        escaped.append(attempt.__name__)
status["CapEff"].strip("0") == "" or escaped.append("capabilities " + status["CapEff"])
status["NoNewPrivs"] == "1" or escaped.append("new privileges")
os.getuid() >= 1000 and os.getgroups() == [] or escaped.append("identity")
resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) or escaped.append("core")
report()
