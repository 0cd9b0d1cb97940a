"""Answers every request with one line."""

import ctypes
from http.server import BaseHTTPRequestHandler, HTTPServer


ctypes.CDLL("libmagic.so.1")


def say():
    return "well"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = say().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


HTTPServer(("", 8000), Handler).serve_forever()
