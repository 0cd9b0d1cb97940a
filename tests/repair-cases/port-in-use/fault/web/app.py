"""Answers every request with one line."""

from http.server import BaseHTTPRequestHandler, HTTPServer


def say():
    return "well"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = say().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


import socket
FIRST = socket.create_server(("", 8000))
HTTPServer(("", 8000), Handler).serve_forever()
