# Runs in a session: servers on ports, with the standard library alone.
import base64, errno, hashlib, http.server, json, os, socket, threading

servers, requests = {}, {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        requests[self.server.name] = requests.get(self.server.name, 0) + 1
        if self.path == "/ws":
            return self.websocket()
        if self.path == "/large":
            return self.chunks(b"y" * 1000000 for _ in range(30))
        if self.path == "/pieces":
            return self.chunks(self.pieces())
        if self.path == "/wait":
            return self.chunks(self.wait())
        left = read = int(self.headers.get("content-length") or 0)
        while left:
            left -= len(self.rfile.read(min(left, 65536)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        said = {"name": self.server.name, "method": self.command, "path": self.path, "headers": headers, "bytes": read}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Strict-Transport-Security", "max-age=1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = answer

    def chunks(self, pieces):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def pieces(self):
        while True:
            size = int(self.rfile.readline(), 16)
            piece = self.rfile.read(size)
            self.rfile.readline()
            if not size:
                return
            yield piece + b"\n"

    def wait(self):
        yield b"begun"
        self.rfile.read(1)

    def websocket(self):
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            kind, size = self.rfile.read(2)
            mask = self.rfile.read(4)
            if kind & 15 == 8:
                return
            data = self.rfile.read(size & 127)
            data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
            self.wfile.write(bytes([kind, len(data)]) + data)


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def serve(port, name):
    server = Server(("0.0.0.0", port), Handler)
    server.name = name
    servers[port] = server
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def stop(port):
    server = servers.pop(port)
    server.shutdown()
    server.server_close()


def served(name):
    return requests.get(name, 0)


def address(port):
    return "%s:%d" % servers[port].socket.getsockname()


def knock(host, port):
    try:
        with socket.create_connection((host, port), 5) as tcp:
            tcp.sendall(b"GET / HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (host.encode(), port))
            answer = tcp.recv(4096)
    except OSError:
        return "refused"
    return "refused" if not answer or answer.startswith(b"HTTP/1.1 403 Forbidden\r\n") else answer


def error(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]


def accepting(port, what):
    listener = socket.create_server(("127.0.0.1", port))

    def accept():
        while True:
            what(listener.accept()[0])

    threading.Thread(target=accept, daemon=True).start()


def rude(port):
    def what(tcp):
        tcp.recv(10)
        tcp.sendall(b"220 this is mail\r\n")
        tcp.close()

    accepting(port, what)


def count(port):
    def what(tcp):
        total = 0
        while piece := tcp.recv(65536):
            total += len(piece)
        tcp.sendall(str(total).encode())
        tcp.close()

    accepting(port, what)
