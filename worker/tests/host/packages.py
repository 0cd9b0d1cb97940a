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


if __name__ == "__main__":
    {"wheel": wheel, "source": source}[sys.argv[1]](*sys.argv[2:])
