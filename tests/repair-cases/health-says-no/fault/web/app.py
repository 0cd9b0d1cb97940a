"""Answers every request with one line."""

from http.server import BaseHTTPRequestHandler, HTTPServer


def say():
    return "the ledger does not balance"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = say().encode()
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


HTTPServer(("", 8000), Handler).serve_forever()
