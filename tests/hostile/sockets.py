# 16 to 19: the cluster, the machine, and sockets of other kinds
def reach(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(3)
        tcp.connect(address)
        tcp.sendall(b"GET /health HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (address[0].encode(), address[1]))
        answer = tcp.recv(4096)
        if not answer or answer.startswith(b"HTTP/1.1 403 Forbidden\r\n"):
            raise PermissionError(errno.EACCES, "refused by the proxy")
        return answer


for host in ("127.0.0.1", "127.1.2.3", "0.0.0.0"):
    refused("coordinator at " + host, lambda: reach(socket.AF_INET, (host, known["port"])))
for host in ("::1", "::ffff:127.0.0.1", "::"):
    refused("coordinator at " + host, lambda: reach(socket.AF_INET6, (host, known["port"])))
for host in ("169.254.169.254", "10.0.0.1", "192.168.0.1", "100.64.0.1"):
    refused(host, lambda: reach(socket.AF_INET, (host, 80)))
for family in (socket.AF_UNIX, socket.AF_NETLINK, 17, 38, 40):
    refused("family %d" % family, lambda: socket.socket(family, socket.SOCK_STREAM))
for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
    refused("kind %d" % kind, lambda: socket.socket(socket.AF_INET, kind))
refused("multipath", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
refused("datagram pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
refused("io_uring", lambda: call(425, 1, None))


def listen(port):
    server = socket.socket()
    server.bind(("127.0.0.1", port))
    server.listen()
    return server


# In a network namespace of its own it may, and behind a filter; nobody else gets there.
if known["shared_network"]:
    for port in (known["port"], 8080):
        refused("listening on %d" % port, lambda: listen(port))
report()
