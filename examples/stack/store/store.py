"""Counters in memory: POST /NAME adds one and answers the new value, GET /NAME answers the value, GET / all names."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

counters = Counter()
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        with lock:
            self.answer(str(counters[name]) if name else " ".join(sorted(counters)))

    def do_POST(self):
        name = self.path.strip("/")
        with lock:
            counters[name] += 1
            value = counters[name]
        self.answer(str(value))

    def answer(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("", 7000), Handler).serve_forever()
