# 3: spread over children, each within the limit
def grow():
    kept = bytearray(60 << 20)
    for at in range(0, len(kept), 4096):
        kept[at] = 1
    time.sleep(20)


children = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        grow()
        os._exit(0)
    children.append(pid)
statuses = [os.waitpid(pid, 0)[1] for pid in children]
print("contained" if any(os.WIFSIGNALED(status) for status in statuses) else "escaped: all of them")
