# What must go on working, whatever is refused.
import asyncio, concurrent.futures, tempfile

assert subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True).stdout == b"42\n"
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(abs, range(-9, 0))) == 45


async def child():
    process = await asyncio.create_subprocess_exec("cat", "/proc/cpuinfo", stdout=subprocess.PIPE)
    return len((await process.communicate())[0])


assert await child() > 0
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
os.symlink("nowhere", "link")
os.rename("link", "moved")
os.unlink("moved")
left, right = socket.socketpair()
left.send(b"x")
assert right.recv(1) == b"x"
assert os.cpu_count() >= 1 and os.listdir("/proc/self/fd")
report()
