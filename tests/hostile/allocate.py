# 4: files that are large without being written, and directories too deep to walk by recursion
refused("a terabyte set aside", lambda: os.posix_fallocate(os.open("aside", os.O_CREAT | os.O_WRONLY), 0, 1 << 40))
refused("an exabyte of nothing", lambda: os.truncate(os.open("sparse", os.O_CREAT | os.O_RDWR), 1 << 60))
os.makedirs("deep")
top = os.open("deep", os.O_RDONLY)
# Where a file system takes long for depth, as deep as it gets.
until = time.monotonic() + 10
for _ in range(5_000):
    if time.monotonic() > until:
        break
    os.mkdir("d", dir_fd=top)
    inner = os.open("d", os.O_RDONLY, dir_fd=top)
    os.close(top)
    top = inner
os.close(top)
report()
