# 11, 13: modes, times and attributes of files that are not its own, by every name there is for them; its own it may change
import array, fcntl, shutil, tarfile, tempfile

own = os.getcwd()
x86 = os.uname().machine == "x86_64"
FCHMODAT2, FCHMOD, FCHMODAT = 452, 91 if x86 else 52, 268 if x86 else 53
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
others = [known["sibling"] + "/secret", known["sibling"], known["base"], known["data"] + "/worker.token", known["data"],
          known["layer"] + "/readable.py", known["layer"], "/usr/bin/env"]


def attempts(path, name):
    """The attempts on one file: by `path`, which is given to each in the form of `name`."""
    yield "chmod", lambda: os.chmod(path, 0o777)
    yield "chown", lambda: os.chown(path, os.getuid(), os.getgid())
    yield "lchown", lambda: os.lchown(path, os.getuid(), os.getgid())
    yield "utime", lambda: os.utime(path, (1, 1))
    yield "utime now", lambda: os.utime(path)
    yield "utime of a link", lambda: os.utime(path, (1, 1), follow_symlinks=False)
    yield "setxattr", lambda: os.setxattr(path, "user.hostile", b"x")
    yield "fchmodat", lambda: call(FCHMODAT, AT_FDCWD, name, 0o777)
    yield "fchmodat2", lambda: call(FCHMODAT2, AT_FDCWD, name, 0o777, 0)
    if x86:
        yield "old chmod", lambda: call(90, name, 0o777)
        yield "old utimes", lambda: call(235, name, None)
        yield "old utime", lambda: call(132, name, None)
        yield "old futimesat", lambda: call(261, AT_FDCWD, name, None)
    yield "setxattrat", lambda: call(463, AT_FDCWD, name, 0, b"user.hostile", b"\0" * 16, 16)
    yield "file_setattr", lambda: call(469, AT_FDCWD, name, b"\0" * 32, 32, 0)


def by_descriptor(fd):
    """The attempts on what is open, or no more than named, by `fd`."""
    yield "fchmod", lambda: os.fchmod(fd, 0o777)
    yield "fchmodat2 of it", lambda: call(FCHMODAT2, fd, b"", 0o777, AT_EMPTY_PATH)
    yield "chmod through /proc", lambda: os.chmod("/proc/self/fd/%d" % fd, 0o777)
    yield "chmod through /proc by number", lambda: os.chmod("/proc/%d/fd/%d" % (os.getpid(), fd), 0o777)
    yield "fchown", lambda: os.fchown(fd, os.getuid(), os.getgid())
    yield "futimens", lambda: os.utime(fd, (1, 1))
    yield "fsetxattr", lambda: os.setxattr(fd, "user.hostile", b"x")
    yield "flags", lambda: fcntl.ioctl(fd, 0x40086602, array.array("i", [0x40]))


for path in others:
    for what, attempt in attempts(path, path.encode()):
        refused("%s %s" % (what, path), attempt)
    for flags in (os.O_PATH, os.O_RDONLY):
        try:
            fd = os.open(path, flags)
        except OSError:
            continue
        for what, attempt in by_descriptor(fd):
            refused("%s %s" % (what, path), attempt)
        os.close(fd)
    os.symlink(path, "to-other")
    for what, attempt in attempts("to-other", b"to-other"):
        # The link is its own.
        if what not in ("lchown", "utime of a link"):
            refused("%s %s by a link" % (what, path), attempt)
    os.unlink("to-other")
    directory, name = os.path.split(path)
    try:
        parent = os.open(directory, os.O_PATH)
        refused("chmod beneath " + directory, lambda: os.chmod(name, 0o777, dir_fd=parent))
        os.close(parent)
        os.chdir(directory)
        refused("chmod from " + directory, lambda: os.chmod(name, 0o777))
    except OSError:
        pass
    os.chdir(own)
up = "../" * 12
refused("chmod upwards", lambda: os.chmod(up + known["sibling"].lstrip("/") + "/secret", 0o777))

# A name that becomes another file's while it is looked at.
open("mine", "w").close()
os.symlink(known["sibling"] + "/secret", "swap")
until, stop = time.monotonic() + 1.0, threading.Event()


def swap():
    while not stop.is_set():
        os.rename("swap", "between")
        os.symlink("mine", "swap")
        os.unlink("swap")
        os.rename("between", "swap")


swapping = threading.Thread(target=swap)
swapping.start()
before = os.stat(known["sibling"] + "/secret").st_mode if os.access(known["sibling"], os.X_OK) else None
while time.monotonic() < until:
    try:
        os.chmod("swap", 0o777)
    except OSError:
        pass
stop.set()
swapping.join()
if before is not None and os.stat(known["sibling"] + "/secret").st_mode != before:
    escaped.append("a mode by a swapped link")
os.unlink("swap")

# What is its own.
os.makedirs("own/deep")
for at in ("own/file", "own/deep/file"):
    with open(at, "w") as file:
        file.write("x")
        os.fchmod(file.fileno(), 0o640)
        assert os.stat(at).st_mode & 0o777 == 0o640
    os.chmod(at, 0o755)
    assert os.stat(at).st_mode & 0o777 == 0o755
    os.utime(at, (12, 34))
    assert (os.stat(at).st_atime, os.stat(at).st_mtime) == (12, 34)
    os.utime(at, ns=(5, 7_000_000_001))
    assert os.stat(at).st_mtime_ns == 7_000_000_001
    os.utime(at)
    assert os.stat(at).st_mtime > 1_000_000_000
    os.chown(at, -1, os.getgid())
    try:
        os.setxattr(at, "user.own", b"value")
        assert os.getxattr(at, "user.own") == b"value"
        os.removexattr(at, "user.own")
        assert os.listxattr(at) == []
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP, error
os.chmod(os.path.abspath("own/file"), 0o600)
assert os.stat("own/file").st_mode & 0o777 == 0o600
parent = os.open("own", os.O_PATH)
os.chmod("file", 0o644, dir_fd=parent)
assert os.stat("own/file").st_mode & 0o777 == 0o644
os.chmod("../own/file", 0o600, dir_fd=parent)
assert os.stat("own/file").st_mode & 0o777 == 0o600
os.symlink("file", "own/link")
os.chmod("own/link", 0o640)
assert os.stat("own/file").st_mode & 0o777 == 0o640
os.utime("own/link", (1, 1), follow_symlinks=False)
assert os.lstat("own/link").st_mtime == 1 != os.stat("own/file").st_mtime
fd = os.open("own/file", os.O_PATH)
os.chmod("/proc/self/fd/%d" % fd, 0o604)
assert os.stat("own/file").st_mode & 0o777 == 0o604
try:
    os.chmod("own/none", 0o600)
    escaped.append("a file that is not there")
except FileNotFoundError:
    pass
shutil.copy2("own/file", "own/copy")
assert os.stat("own/copy").st_mode == os.stat("own/file").st_mode
with tempfile.TemporaryFile() as file:
    os.fchmod(file.fileno(), 0o600)
with tempfile.NamedTemporaryFile() as file:
    os.chmod(file.name, 0o600)
with tarfile.open("own.tar", "w") as archive:
    archive.add("own")
with tarfile.open("own.tar") as archive:
    archive.extractall("unpacked")
assert os.stat("unpacked/own/file").st_mode & 0o777 == 0o604
subprocess.run(["sh", "-c", "touch made && chmod +x made && test -x made && cp -p made copied"], check=True)
report()
