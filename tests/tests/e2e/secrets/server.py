"""A host that wants a key, with TLS where a certificate is given. Prints its port, then a line of JSON a request."""

import http.server
import json
import ssl
import sys
import threading

said = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        length = self.headers.get("content-length")
        body = self.rfile.read(int(length)).decode() if length else ""
        request = {
            "path": self.path,
            "host": self.headers["host"],
            "authorization": self.headers.get_all("authorization"),
            "key": self.headers.get_all("x-api-key"),
            "connection": self.client_address[1],
            "body": body,
        }
        with said:
            print(json.dumps(request), flush=True)
        answer = b"well"
        self.send_response(302 if self.path.startswith("/to/") else 200)
        if self.path.startswith("/to/"):
            self.send_header("location", self.path[4:])
        if self.path == "/echo":
            answer = str(self.headers).encode()
            self.send_header("x-echo", str(self.headers["authorization"]))
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
if len(sys.argv) > 1:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
