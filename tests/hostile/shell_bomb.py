# 1: the classic, by a shell that stays: stopped, and deaf to what is friendly
bomb = "b() { b | b & }; b; kill -STOP $$"
subprocess.Popen(["sh", "-c", bomb], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
time.sleep(2)
report()
