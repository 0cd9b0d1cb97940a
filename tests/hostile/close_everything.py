# 25: without the descriptors that its runner needs
os.closerange(0, 1 << 16)
