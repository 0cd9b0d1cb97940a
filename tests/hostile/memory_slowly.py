# 3: growth, a page at a time
kept = []
while True:
    kept.append(bytearray(1 << 20))
