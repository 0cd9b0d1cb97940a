# 1: processes as fast as they can be had
made = []
while True:
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    made.append(pid)
    if len(made) > 2000:
        escaped.append("2000 processes")
        break
for pid in made:
    os.kill(pid, signal.SIGKILL)
for pid in made:
    os.waitpid(pid, 0)
report()
