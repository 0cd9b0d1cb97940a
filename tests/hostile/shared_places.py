# 5: places that are everybody's elsewhere
for place in ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", "/dev/mqueue", "/run", "/etc", "/usr", "/"):
    try:
        with open(place + "/cooper-hostile-mark", "w") as file:
            file.write("mark")
    except OSError:
        pass
for name, number, arguments in (
    ("shmget", 29, (0xC00, 4096, 0o1666)),
    ("semget", 64, (0xC00, 1, 0o1666)),
    ("msgget", 68, (0xC00, 0o1666)),
    ("mq_open", 240, (b"mark", 0o102, 0o666, None)),
):
    refused(name, lambda: call(number, *arguments))
os.environ["COOPER_HOSTILE_MARK"] = "mark"
os.umask(0)
report()
