# 3: an allocation that no machine has
refused("a terabyte", lambda: bytearray(1 << 40))


def reserved():
    import mmap

    kept = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    for at in range(0, 1 << 40, 4096):
        kept[at] = 1
    return kept


# MAP_NORESERVE: where only what is touched counts, touching it is the end.
try:
    reserved()
    escaped.append("a terabyte, touched")
except (OSError, MemoryError):
    pass
report()
