# 2: threads, which count as processes
stop, made = threading.Event(), 0
try:
    while made < 10_000:
        threading.Thread(target=stop.wait, daemon=True).start()
        made += 1
except RuntimeError:
    pass
stop.set()
if made >= 10_000:
    escaped.append("10,000 threads")
report()
