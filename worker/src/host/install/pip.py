"""pip as a session has it. Installs and uninstalls are the worker's to do, under the session's rules; it is asked over a
connection to its proxy. What only looks is answered here."""

import os
import sys

__version__ = "0+cooper"

# The way out of a session answers every connect; nobody listens at this address.
WAY = ("127.0.0.1", 3128)
HOST = "pip.cooper.internal"
OUT, ERR, END = 1, 2, 0
USAGE = """pip in a session installs through its worker. Supported are:
  pip install [-U] [--force-reinstall] [--no-deps] [--pre] [-q] [-i URL] [-r FILE]... [-c FILE]... [-e PATH]... [REQUIREMENT...]
  pip uninstall [-y] [-r FILE]... PACKAGE...
  pip list [--format columns|freeze|json]
  pip freeze
  pip show PACKAGE...
  pip --version"""
# Options that ask for what is so anyway, and whether a value follows.
PLAIN = {
    "-y": 0, "--yes": 0, "--no-input": 0, "--disable-pip-version-check": 0, "--no-cache-dir": 0, "--no-color": 0,
    "--no-warn-script-location": 0, "--no-python-version-warning": 0, "--require-virtualenv": 0, "--progress-bar": 1,
    "--root-user-action": 1, "--cache-dir": 1, "--timeout": 1, "--retries": 1,
}
FLAGS = {
    "-U": "upgrade", "--upgrade": "upgrade", "--force-reinstall": "reinstall", "--no-deps": "no_deps",
    "--pre": "prerelease", "-q": "quiet", "--quiet": "quiet", "-qq": "quiet", "-v": "verbose", "--verbose": "verbose",
}
VALUES = {
    "-r": "requirement_files", "--requirement": "requirement_files", "-c": "constraint_files",
    "--constraint": "constraint_files", "-e": "editable", "--editable": "editable", "-i": "index_url",
    "--index-url": "index_url", "--format": "format",
}
# Which of these a command takes.
TAKES = {
    "install": {"upgrade", "reinstall", "no_deps", "prerelease", "quiet", "verbose", "requirement_files",
                "constraint_files", "editable", "index_url"},
    "uninstall": {"quiet", "verbose", "requirement_files"},
    "list": {"format", "quiet", "verbose"},
    "freeze": {"quiet"},
    "show": {"quiet", "verbose"},
}


class Refused(Exception):
    pass


def parsed(command, arguments):
    found = {name: [] for name in ("requirement_files", "constraint_files", "editable", "rest")}
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            found["rest"] += arguments
            break
        if not argument.startswith("-") or argument == "-":
            found["rest"].append(argument)
            continue
        name, equals, value = argument.partition("=")
        if not argument.startswith("--") and len(argument) > 2 and argument[:2] in VALUES and not equals:
            name, equals, value = argument[:2], "=", argument[2:]
        what = FLAGS.get(name) or VALUES.get(name)
        if (what not in TAKES[command] and name not in PLAIN) or (equals and name in FLAGS):
            raise Refused("pip %s: %s is not supported in a session" % (command, name))
        if name in FLAGS:
            found[what] = True
        elif name in VALUES or PLAIN.get(name):
            if not equals:
                if not arguments:
                    raise Refused("pip %s: %s wants a value" % (command, name))
                value = arguments.pop(0)
            if isinstance(found.get(what), list):
                found[what].append(value)
            elif what:
                found[what] = value
    return found


def is_pip(requirement):
    import re

    return re.match(r"\s*(pip)\s*($|[\[=<>!~;@ ])", requirement, re.I) is not None


def install(options):
    packages = [name for name in options.pop("rest") if not is_pip(name)]
    named = packages or options["requirement_files"] or options["editable"]
    if not named:
        print("pip is the session's own, and stays as it is")
        return 0
    quiet = options.pop("quiet", False)
    options.pop("verbose", None)
    return ask({"Install": dict(options, packages=packages, cwd=os.getcwd())}, quiet)


def uninstall(options):
    names = options["rest"]
    for path in options["requirement_files"]:
        with open(path) as file:
            lines = [line.split("#")[0].strip() for line in file]
        names += [line for line in lines if line and not line.startswith("-")]
    names = [name for name in names if not is_pip(name)]
    if not names:
        raise Refused("pip uninstall: name what is to go (pip itself stays)")
    return ask({"Uninstall": names}, options.get("quiet", False))


def ask(order, quiet):
    import json
    import socket

    body = json.dumps(order).encode()
    head = "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n" % (HOST, len(body))
    try:
        channel = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        channel.connect(WAY)
        channel.sendall(head.encode() + body)
        stream = channel.makefile("rb")
        if b" 200 " not in stream.readline():
            raise OSError("it was refused")
        while stream.readline().strip():
            pass
    except OSError as error:
        raise Refused("pip: this session has no way to its worker's installer (%s); from outside it is "
                      "`cooper packages install`" % error)
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except Exception:
            pass
    while True:
        kind = stream.read(5)
        if len(kind) < 5:
            raise Refused("pip: the worker's installer is gone; the packages are as they were")
        data = stream.read(int.from_bytes(kind[1:], "big"))
        if kind[0] == END:
            end = json.loads(data)
            if end["error"]:
                raise Refused("pip: " + end["error"])
            return end["exit_code"]
        if not (quiet and kind[0] == OUT):
            write(1 if kind[0] == OUT else 2, data)


def write(fd, data):
    while data:
        data = data[os.write(fd, data):]


def there():
    from importlib import metadata

    found = {}
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name:
            found.setdefault(name.lower().replace("_", "-").replace(".", "-"), package)
    return found


def listed(options):
    packages = [(package.metadata["Name"], package.version) for _, package in sorted(there().items())]
    form = options.get("format", "columns")
    if form == "json":
        import json

        print(json.dumps([{"name": name, "version": version} for name, version in packages]))
    elif form == "freeze":
        for package in packages:
            print("%s==%s" % package)
    elif form != "columns":
        raise Refused("pip list: --format is columns, freeze or json")
    elif packages:
        wide = max(max(len(name) for name, _ in packages), len("Package"))
        print("%-*s Version\n%s -------" % (wide, "Package", "-" * wide))
        for name, version in packages:
            print("%-*s %s" % (wide, name, version))
    return 0


def show(options):
    found, code = there(), 0
    for number, name in enumerate(options["rest"]):
        package = found.get(name.lower().replace("_", "-").replace(".", "-"))
        if package is None:
            print("WARNING: Package(s) not found: %s" % name, file=sys.stderr)
            code = 1
            continue
        about = package.metadata
        needs = ", ".join(line.split(";")[0].strip() for line in package.requires or () if "extra ==" not in line)
        print("---\n" if number else "", end="")
        for field, value in (("Name", about["Name"]), ("Version", package.version), ("Summary", about["Summary"] or ""),
                             ("Home-page", about["Home-page"] or ""), ("License", about["License"] or ""),
                             ("Location", str(package.locate_file(""))), ("Requires", needs)):
            print("%s: %s" % (field, value))
    return code


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    while arguments and arguments[0] in PLAIN and not PLAIN[arguments[0]]:
        arguments.pop(0)
    command = arguments[0] if arguments else "help"
    try:
        if command in ("-V", "--version"):
            print("pip %s from %s (python %d.%d)" % ((__version__, os.path.abspath(__file__)) + sys.version_info[:2]))
            return 0
        if command in ("help", "-h", "--help"):
            print(USAGE)
            return 0
        if command not in TAKES:
            raise Refused("pip %s is not supported in a session" % command)
        options = parsed(command, arguments[1:])
        if command in ("install", "uninstall", "show") and not any(
                options[name] for name in ("rest", "requirement_files", "editable")):
            raise Refused("pip %s: name at least one package" % command)
        if command == "freeze":
            return listed(dict(options, format="freeze"))
        return {"install": install, "uninstall": uninstall, "list": listed, "show": show}[command](options)
    except Refused as refused:
        print("%s\n\n%s" % (refused, USAGE) if "supported" in str(refused) else refused, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
