# 8: everything it may signal is its own
child = subprocess.Popen(["sleep", "60"])
os.kill(-1, signal.SIGKILL)
