# 25: answers of its own making, on every socket it has
import json, struct

forged = json.dumps({"id": 0, "exit_code": 0, "result": {"data": {"text/plain": "'forged'"}}}).encode()
for fd in range(3, 256):
    for packet in (b"\0" + forged, b"\0{", b"", b"\1", b"\0" * 70000, struct.pack("=4q", 1, 1, 0, 0)):
        try:
            os.write(fd, packet)
        except OSError:
            pass
report()
