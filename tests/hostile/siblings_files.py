# 10, 11, 13: a sibling's and the worker's files, by path, link and hard link
sibling, base, data = known["sibling"], known["base"], known["data"]
for path in (sibling, base, data, data + "/worker"):
    refused("list " + path, lambda: os.listdir(path))
for path in (sibling + "/secret", data + "/worker.token", data + "/worker/worker_id"):
    refused("read " + path, lambda: open(path).read())
    refused("write " + path, lambda: open(path, "a"))
    refused("chmod " + path, lambda: os.chmod(path, 0o777))
    refused("link " + path, lambda: os.link(path, "hardlink"))
    refused("rename " + path, lambda: os.rename(path, "moved"))
for path in ("/root", "/home"):
    refused("list " + path, lambda: os.listdir(path))
for path in ("/etc/shadow", "/etc/ssl/private", "/proc/kcore", "/dev/mem", "/dev/kmsg", "/sys/kernel/security"):
    refused("open " + path, lambda: os.open(path, os.O_RDONLY))
for path in ("/etc/x", "/usr/x", "/var/x", "/x", base + "/x", data + "/x", data + "/worker/x"):
    refused("make " + path, lambda: open(path, "w"))
for path in ("/etc/passwd", "/usr/bin/env"):
    refused("write " + path, lambda: open(path, "a"))
    refused("chmod " + path, lambda: os.chmod(path, 0o777))
    refused("link " + path, lambda: os.link(path, "hardlink"))
os.symlink(sibling + "/secret", "to-sibling")
refused("through a symbolic link", lambda: open("to-sibling").read())
os.unlink("to-sibling")
report()
