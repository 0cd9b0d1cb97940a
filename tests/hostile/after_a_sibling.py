# 5, 29: what a sibling left, and what is not this session's
for place in ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", "/dev/mqueue", "/run", "/etc", "/usr", "/"):
    refused("a mark in " + place, lambda: open(place + "/cooper-hostile-mark").read())
if "COOPER_HOSTILE_MARK" in os.environ:
    escaped.append("environment")
if os.umask(0o022) != 0o022:
    escaped.append("umask")
for fd in range(3, 256):
    try:
        target = os.readlink("/proc/self/fd/%d" % fd)
    except OSError:
        continue
    if not target.startswith(("socket:", "pipe:", "anon_inode:", "/memfd:", "/proc/")):
        escaped.append("descriptor %d: %s" % (fd, target))
report()
