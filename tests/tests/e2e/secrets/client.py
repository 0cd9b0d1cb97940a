import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request

PROXY = ("127.0.0.1", 3128)


def fetch(url, headers={}):
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=30).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.headers['X-Cooper-Refused']}"


def kept(host, port, targets, named=None, **more):
    """Several requests over one connection."""
    connection = http.client.HTTPSConnection(*PROXY, timeout=30)
    connection.set_tunnel(host, port)
    found = []
    for target in targets:
        connection.request("POST", target, body=b"of " + target.encode(), headers={"Host": named or f"{host}:{port}", **more})
        answer = connection.getresponse()
        found.append(f"{answer.status} {answer.headers['X-Cooper-Refused']} {answer.read().decode()}")
    return found


def raw(host, port, sni, text):
    """Whatever is written, over TLS for a name of one's own."""
    stream = socket.create_connection(PROXY)
    stream.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    stream.recv(4096)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        stream = context.wrap_socket(stream, server_hostname=sni)
        stream.sendall(text.encode())
        return stream.recv(4096).decode().splitlines()[0]
    except (ssl.SSLError, OSError) as error:
        return type(error).__name__


def issuer(host, port):
    stream = socket.create_connection(PROXY)
    stream.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    stream.recv(4096)
    with ssl.create_default_context().wrap_socket(stream, server_hostname=host) as stream:
        return dict(part[0] for part in stream.getpeercert()["issuer"])["commonName"]


def search(flipped):
    """Where the text is that this is the mirror of, byte for byte: it must not itself be what is found."""
    mirror = bytes(255 - byte for byte in range(256))
    needle, found, looked = flipped.encode("latin-1"), [], 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        for name in ["environ", "cmdline"]:
            try:
                if needle in open(f"/proc/{process}/{name}", "rb").read().translate(mirror):
                    found.append(f"{process} {name}")
            except OSError:
                pass
        try:
            maps = open(f"/proc/{process}/maps").read().splitlines()
            memory = open(f"/proc/{process}/mem", "rb", buffering=0)
        except OSError:
            continue
        for line in maps:
            begin, end = (int(edge, 16) for edge in line.split()[0].split("-"))
            if "r" not in line.split()[1] or end - begin > 1 << 28:
                continue
            try:
                memory.seek(begin)
                looked += 1
                if needle in memory.read(end - begin).translate(mirror):
                    found.append(f"{process} {line}")
            except (OSError, ValueError, OverflowError):
                pass
    home = os.path.dirname(os.environ["HOME"])
    for place, _, names in [step for root in [home, "/tmp", "/run", "/dev/shm"] for step in os.walk(root)]:
        for name in names:
            try:
                path = os.path.join(place, name)
                if os.path.isfile(path) and needle in open(path, "rb").read().translate(mirror):
                    found.append(path)
            except OSError:
                pass
    return found if looked > 10 else "nothing was looked at"
