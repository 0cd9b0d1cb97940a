"""Answers every request with one line."""

import yaml
from http.server import BaseHTTPRequestHandler, HTTPServer


def say():
    return yaml.safe_load("state: well")["state"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = say().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


HTTPServer(("", 8000), Handler).serve_forever()
