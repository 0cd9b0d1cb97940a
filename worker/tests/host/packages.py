"""Makes packages for tests: `wheel DIR NAME VERSION [FILES]`, and `source DIR NAME BACKEND`, a project whose build runs BACKEND."""

import base64
import io
import os
import sys
import tarfile
import zipfile


def wheel(where, name, version, files=1):
    info = "%s-%s.dist-info/" % (name, version)
    with zipfile.ZipFile("%s/%s-%s-py3-none-any.whl" % (where, name, version), "w") as archive:
        written = {name + "/__init__.py": "VERSION = %r\n" % version}
        for number in range(int(files) - 1):
            written[name + "/part%d.py" % number] = "N = %d\n" % number
        written[info + "METADATA"] = "Metadata-Version: 2.1\nName: %s\nVersion: %s\nProvides-Extra: hoops\nRequires-Dist: hoops; extra == 'hoops'\n" % (name, version)
        written[info + "WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        written[info + "entry_points.txt"] = "[console_scripts]\n%s = %s:main\n" % (name, name)
        record = "".join("%s,,\n" % path for path in written)
        written[info + "RECORD"] = record + info + "RECORD,,\n"
        for path, text in written.items():
            archive.writestr(path, text)


def source(where, name, backend):
    written = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: %s\nVersion: 1.0\n" % name,
        "backend.py": backend,
    }
    with tarfile.open("%s/%s-1.0.tar.gz" % (where, name), "w:gz") as archive:
        for path, text in written.items():
            entry = tarfile.TarInfo("%s-1.0/%s" % (name, path))
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def serve(where, user, certificate=""):
    """An index that takes a password, and something beside it that the password is good for too. Says its port."""
    import http.server
    import ssl

    wanted = "Basic " + base64.b64encode(user.encode()).decode()

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Authorization"] != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            parts = self.path.strip("/").split("/")
            if parts[:2] == ["team", "simple"]:
                files = sorted(name for name in os.listdir(where) if name.startswith(parts[2] + "-"))
                base = "%s://%s" % ("https" if certificate else "http", self.headers["Host"])
                links = "".join('<a href="%s/team/files/%s">%s</a>' % (base, name, name) for name in files)
                self.answer(("<!DOCTYPE html><html><body>%s</body></html>" % links).encode(), "text/html")
            elif parts[:2] == ["team", "files"]:
                with open(os.path.join(where, parts[2]), "rb") as file:
                    self.answer(file.read(), "application/octet-stream")
            else:
                self.answer(b"what the password is also good for", "text/plain")

        do_HEAD = do_POST = do_GET

        def answer(self, body, kind):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    {"wheel": wheel, "source": source, "serve": serve}[sys.argv[1]](*sys.argv[2:])
