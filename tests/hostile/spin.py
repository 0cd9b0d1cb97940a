# 24: neither interrupt nor termination end it, and what it started wants to stay
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(300)
    os._exit(0)
stopped = subprocess.Popen(["sleep", "300"])
stopped.send_signal(signal.SIGSTOP)
while True:
    pass
