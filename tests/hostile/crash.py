# 25: an interpreter that falls over
sys.setrecursionlimit(1 << 30)
ctypes.string_at(0)
