# Run in a session: what it may bind, and what it may not. Answers with what was wrong.
import errno, resource, socket, threading

wrong = []


def tried(what, expected, attempt):
    try:
        attempt()
        said = None
    except OSError as error:
        said = errno.errorcode[error.errno]
    if said != expected:
        wrong.append("%s: %s, not %s" % (what, said, expected))


def bind(address, family=socket.AF_INET):
    tcp = socket.socket(family, socket.SOCK_STREAM)
    tcp.bind(address)
    tcp.listen()
    return tcp


# Neither privileged ports nor addresses of others.
for port in (1, 22, 80, 443, 1023):
    tried("port %d" % port, "EACCES", lambda: bind(("0.0.0.0", port)))
for host in ("10.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "192.0.2.1"):
    tried(host, "EADDRNOTAVAIL", lambda: bind((host, 8000)))
for host in ("2001:db8::1", "fe80::1", "::ffff:10.0.0.1"):
    tried(host, "EADDRNOTAVAIL", lambda: bind((host, 8000), socket.AF_INET6))
near, far = socket.socketpair()
tried("a named socket", "EAFNOSUPPORT", lambda: near.bind("named"))
tried("an abstract socket", "EAFNOSUPPORT", lambda: near.bind("\0abstract"))

# A thousand, of which it keeps what it may.
kept = []
for n in range(1000):
    try:
        kept.append(bind(("127.0.0.1", 2000 + n)))
    except OSError as error:
        if error.errno != errno.EMFILE:
            wrong.append("bind %d: %s" % (n, error))
if len(kept) != 32:
    wrong.append("kept %d" % len(kept))
for tcp in kept:
    tcp.close()
# And a thousand that it leaves again, from several threads at once.
def churn(first):
    for n in range(250):
        try:
            bind(("127.0.0.1", first + n)).close()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENOBUFS):
                wrong.append("churn: %s" % error)


threads = [threading.Thread(target=churn, args=(3000 + 1000 * n,)) for n in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]

# The filter stays, and the socket leads nowhere else.
tcp = bind(("0.0.0.0", 8000))
tried("off with the filter", "EPERM", lambda: tcp.setsockopt(socket.SOL_SOCKET, 27, 0))
tried("another filter", "EPERM", lambda: tcp.setsockopt(socket.SOL_SOCKET, 26, bytes(16)))
tried("unlocked", "EPERM", lambda: tcp.setsockopt(socket.SOL_SOCKET, 44, 0))
tried("bound twice", "EADDRINUSE", lambda: bind(("127.0.0.1", 8000)))
host, port = tcp.getsockname()
unbound = socket.socket()
unbound.listen()
if unbound.getsockname()[1] != 0:
    wrong.append("listens without being bound: %r" % (unbound.getsockname(),))
{"wrong": wrong, "host": host, "port": port}
