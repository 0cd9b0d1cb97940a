# 30: as many busy processes as it may have, for a while
children = []
for _ in range(16):
    pid = os.fork()
    if pid == 0:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
report()
