# 4: files without content
for n in range(1_000_000):
    os.makedirs("many/%d" % (n // 500), exist_ok=True)
    open("many/%d/%d" % (n // 500, n), "w").close()
