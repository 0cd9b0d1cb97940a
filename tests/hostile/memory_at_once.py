# 3: an allocation that no machine has
refused("a terabyte", lambda: bytearray(1 << 40))
report()
