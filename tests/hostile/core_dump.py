# 22: a crash leaves no core
pid = os.fork()
if pid == 0:
    os.abort()
_, status = os.waitpid(pid, 0)
if os.WCOREDUMP(status) or any(name.startswith("core") for name in os.listdir(".")):
    escaped.append("a core")
report()
