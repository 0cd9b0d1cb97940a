import asyncio, http.client, os, socket, urllib.error, urllib.request


def fetch(url):
    """As most programs do it: through the proxy of the environment."""
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return error.headers.get("X-Cooper-Refused") or str(error.code)


def raw(host, place=("10.1.2.3", 80), timeout=20):
    """Straight to an address that is none of the host's: the name in the request decides."""
    with socket.create_connection(place, timeout=timeout) as way:
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        way.sendall(b"GET /x HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
        answer = b""
        while piece := way.recv(65536):
            answer += piece
        return answer.decode()


async def streamed(host):
    reader, writer = await asyncio.open_connection("192.0.2.1", 80)
    inner = writer.get_extra_info("socket")
    assert not os.get_blocking(inner.fileno()), "what was not blocking blocks"
    writer.write(b"GET /x HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
    return (await asyncio.wait_for(reader.read(), 20)).decode()


def connect(authority, extra=b""):
    """CONNECT, as it is written; the status of the answer, or nothing at all."""
    way = socket.create_connection(("127.0.0.1", 3128), timeout=20)
    head = b""
    try:
        way.sendall(b"CONNECT %s HTTP/1.1\r\n%s\r\n" % (authority.encode(), extra))
    except ConnectionError:
        return way, "closed"
    while b"\r\n\r\n" not in head:
        try:
            piece = way.recv(1)
        except ConnectionResetError:
            piece = b""
        if not piece:
            return way, "closed"
        head += piece
    refused = [line for line in head.decode().split("\r\n") if line.startswith("X-Cooper-Refused: ")]
    return way, refused[0].split(": ")[1] if refused else head.decode().split(" ")[1]


def kinds():
    """What is no TCP socket, or no way out."""
    found = []
    for family, kind in [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET6, socket.SOCK_DGRAM),
                         (socket.AF_INET, socket.SOCK_RAW), (socket.AF_UNIX, socket.SOCK_STREAM)]:
        try:
            socket.socket(family, kind)
            found.append((family, kind))
        except OSError:
            pass
    way = socket.socket()
    try:
        way.sendto(b"x", socket.MSG_FASTOPEN, ("127.0.0.1", SERVER))
        found.append("fast open")
    except OSError:
        pass
    return found
