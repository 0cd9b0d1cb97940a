# 25: an interpreter that leaves, or becomes another program
os.execv("/bin/sh", ["sh", "-c", "echo forged >&200; exit 0"])
