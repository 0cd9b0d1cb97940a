"""GET / counts a visit in the store; GET /health says that this service is up, whether or not the store is."""

import os
import urllib.request

from flask import Flask

app = Flask(__name__)
store = os.environ["STORE_URL"]


@app.get("/")
def visit():
    request = urllib.request.Request(f"{store}/visits", method="POST")
    with urllib.request.urlopen(request, timeout=2) as answer:
        return {"visits": int(answer.read())}


@app.get("/health")
def health():
    return {"status": "ok"}


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=8000)
