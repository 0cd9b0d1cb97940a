# 6, 7: secrets of the worker, and other processes
import gc

canary = known["canary"]
for name in ("environ", "cmdline"):
    if canary in open("/proc/self/" + name).read():
        escaped.append("its own " + name)
if any(canary in value for value in os.environ.values()):
    escaped.append("os.environ")
if any(isinstance(found, str) and canary in found and found is not canary for found in gc.get_objects()):
    escaped.append("the heap")
for pid in (os.getppid(), 1):
    for name in ("environ", "cmdline", "maps", "mem", "status", "syscall", "stack"):
        refused("/proc/%d/%s" % (pid, name), lambda: open("/proc/%d/%s" % (pid, name), "rb").read(100))
    for name in ("fd", "cwd", "root", "task"):
        refused("/proc/%d/%s" % (pid, name), lambda: os.listdir("/proc/%d/%s" % (pid, name)))
me = os.getpid()
for pid in range(1, 400):
    if pid == me or pid == os.getppid():
        continue
    for name in ("environ", "maps", "mem", "fd", "cwd", "root"):
        path = "/proc/%d/%s" % (pid, name)
        try:
            if name == "fd":
                os.listdir(path)
            elif name in ("cwd", "root"):
                os.readlink(path)
            else:
                open(path, "rb").read(1)
        except OSError:
            continue
        if os.stat("/proc/%d" % pid).st_uid != os.getuid():
            escaped.append(path)
for path in (known["data"] + "/worker.token", known["data"] + "/admin.token", known["data"] + "/cooper.db", "/etc/shadow"):
    refused(path, lambda: open(path, "rb").read(1))
report()
