"""Saves an interpreter's variables into a file of its workspace, and brings them into another interpreter.

The host sends this text to the runner of a session with what is to be done, so both sides run inside of the session's
own sandbox, as its user and within its limits. Saving happens in a fork: code of the session's that pickling calls may
hang, crash or use up memory without harm to the interpreter itself.

The file: a line of magic, a line of JSON (what is imported by name), one pickle of a dict, and JSON again (source lines).
Modules are imported anew; functions and classes of `__main__` go along by value (code, defaults, closure, attributes), everything else as
pickle has it. What cannot be saved is left out, and said.
"""

import json
import os
import sys
import time

MAGIC = b"cooper globals 1\n"
SOURCES_BYTES_MAX = 1 << 20
WHY_BYTES_MAX = 200
NAME_BYTES_MAX = 128
OWN = ("_", "display")
EMPTY = "cooper: an empty cell"


def main(runner, message, module):
    """`module` is this text, which pickles find by its name while they are made and loaded."""
    globals().update(NAMESPACE=runner.namespace, CELLS={}, SOURCES=set())
    return (save if message["do"] == "save" else load)(runner, message, module)


def why(error):
    text = "%s: %s" % (type(error).__name__, error)
    return text.encode("utf-8", "backslashreplace").decode()[:WHY_BYTES_MAX]


def report(done, names, dropped, most):
    shown = [(name[:NAME_BYTES_MAX], why) for name, why in sorted(dropped.items())[:most]]
    done.update(names=[name[:NAME_BYTES_MAX] for name in sorted(names)[:most]], count=len(names))
    done.update(dropped=[{"name": name, "why": why} for name, why in shown], dropped_count=len(dropped))
    return done


# --- saving


def save(runner, message, module):
    import select
    import signal

    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receive)
            runner.control.close()
            said = json.dumps(write(runner, message, module)).encode()
            while said:
                said = said[os.write(send, said) :]
            os._exit(0)
        finally:
            os._exit(1)
    os.close(send)
    said, until = b"", time.monotonic() + message["ms"] / 1000
    poll = select.poll()
    poll.register(receive, select.POLLIN)
    late = False
    while len(said) < 1 << 20:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            late = left <= 0 or time.monotonic() >= until
            if late:
                break
            continue
        piece = os.read(receive, 1 << 16)
        if not piece:
            break
        said += piece
    os.close(receive)
    try:
        os.kill(child, signal.SIGKILL)
    except OSError:
        pass
    status = 0
    try:
        status = os.waitpid(child, 0)[1]
    except ChildProcessError:
        pass  # a handler of the session's was quicker
    if said and not late:
        return json.loads(said)
    if late:
        return {"error": "saving them took longer than %d s" % (message["ms"] // 1000)}
    return {"error": "the process that saved them ended with signal %d" % (status & 0x7F)}


def write(runner, message, module):
    import pickle
    import signal

    sys.modules[module.__name__] = module
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass

    def interrupt(signum, frame):
        raise TimeoutError("it took too long")

    signal.signal(signal.SIGALRM, interrupt)
    saver = saver_of(pickle)
    modules, values, dropped = {}, {}, {}
    for name, value in list(runner.namespace.items()):
        if not isinstance(name, str) or name.startswith("__") or name in OWN:
            continue
        if isinstance(value, type(sys)):
            known = getattr(value, "__name__", None)
            if sys.modules.get(known) is value:
                modules[name] = known
            else:
                dropped[name] = "a module that cannot be imported by its name"
        else:
            values[name] = value
    path = message["path"]

    def together(seconds):
        if os.path.lexists(path):
            os.unlink(path)
        SOURCES.clear()
        here = [place for place in sys.path if isinstance(place, str) and place.startswith(message["workspace"])]
        # What is left out goes along: who has the session back is told.
        head = {"modules": modules, "cells": runner.cells, "path": here, "dropped": dropped}
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(MAGIC + json.dumps(head).encode() + b"\n")
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                saver(Bounded(file, message["bytes_max"])).dump(values)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            file.write(json.dumps(kept_sources()).encode())

    seconds = message["ms"] / 1000
    try:
        together(seconds / 3)
    except BaseException:
        # Which of them? Each alone, then all that can be.
        sizes = {}
        for name in list(values):
            counter = Counter()
            try:
                signal.setitimer(signal.ITIMER_REAL, max(0.2, seconds / 12))
                saver(Bounded(counter, message["bytes_max"])).dump({name: values[name]})
                sizes[name] = counter.bytes
            except BaseException as error:
                dropped[name] = why(error)
                del values[name]
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        total = 0
        for name in sorted(sizes, key=sizes.get):
            total += sizes[name]
            if total > message["bytes_max"]:
                dropped[name] = "too large: with it there would be more than %d bytes" % message["bytes_max"]
                del values[name]
        try:
            together(seconds / 3)
        except BaseException as error:
            return {"error": why(error)}
    names = list(values) + list(modules)
    return report({"bytes": os.stat(path).st_size}, names, dropped, message["named_max"])


def kept_sources():
    """Source lines of the functions that go along, for tracebacks and `inspect`."""
    import linecache

    found, room = {}, SOURCES_BYTES_MAX
    for name in sorted(SOURCES):
        entry = linecache.cache.get(name)
        text = "".join(entry[2]) if entry and len(entry) == 4 else ""
        if text and len(text) <= room:
            found[name] = text
            room -= len(text)
    return found


class Counter:
    bytes = 0

    def write(self, data):
        self.bytes += memoryview(data).nbytes


class Bounded:
    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, data):
        self.left -= memoryview(data).nbytes
        if self.left < 0:
            raise OverflowError("too large")
        return self.file.write(data)


DATACLASSES = ("MISSING", "KW_ONLY", "_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR", "_HAS_DEFAULT_FACTORY")


def saver_of(pickle):
    """A pickler that knows functions, classes and modules of the session's own."""
    import abc
    import types

    def by_name(value):
        module = sys.modules.get(getattr(value, "__module__", None))
        if module is None or getattr(value, "__module__", None) == "__main__":
            return False
        try:
            for part in value.__qualname__.split("."):
                module = getattr(module, part)
        except AttributeError:
            return False
        return module is value

    def of_function(function):
        import marshal

        if by_name(function):
            return NotImplemented
        home = function.__globals__.get("__name__")
        if function.__globals__ is not NAMESPACE:
            if getattr(sys.modules.get(home), "__dict__", None) is not function.__globals__:
                raise pickle.PicklingError("function %s has globals of its own" % function.__qualname__)
        else:
            home = "__main__"
        SOURCES.add(function.__code__.co_filename)
        cells = function.__closure__ or ()

        def content(cell):
            try:
                return cell.cell_contents
            except ValueError:
                return EMPTY

        state = {
            "cells": [content(cell) for cell in cells],
            "__defaults__": function.__defaults__,
            "__kwdefaults__": function.__kwdefaults__,
            "__dict__": dict(function.__dict__),
            "__annotations__": dict(getattr(function, "__annotations__", None) or {}),
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
            "__name__": function.__name__,
        }
        arguments = (marshal.dumps(function.__code__), home, [id(cell) for cell in cells])
        return a_function, arguments, state, None, None, fill_function

    def of_class(kind):
        if kind.__module__ != "__main__":
            return NotImplemented
        if type(kind) not in (type, abc.ABCMeta):
            raise pickle.PicklingError("class %s has the metaclass %s" % (kind.__qualname__, type(kind).__name__))
        inside = dict(kind.__dict__)
        if kind.__bases__ == (tuple,) and isinstance(inside.get("_fields"), tuple):
            made = (kind.__name__, inside["_fields"], inside.get("_field_defaults") or {})
            own = {k: v for k, v in inside.items() if k in ("__doc__", "__annotations__")}
            own.update(
                (k, v)
                for k, v in inside.items()
                if isinstance(v, (types.FunctionType, property, classmethod, staticmethod))
                and getattr(getattr(v, "__func__", v), "__globals__", NAMESPACE) is NAMESPACE
                and k not in ("__new__", "_make")
            )
            return a_named_tuple, made, own, None, None, fill_class
        slots = inside.get("__slots__", ())
        slots = {slots} if isinstance(slots, str) else set(slots)
        for name in ("__dict__", "__weakref__", "_abc_impl", "__module__", "__qualname__"):
            inside.pop(name, None)
        first = {"__module__": "__main__", "__qualname__": kind.__qualname__}
        if "__slots__" in inside:
            first["__slots__"] = inside.pop("__slots__")
        inside = {
            name: value
            for name, value in inside.items()
            if name not in slots and not isinstance(value, types.GetSetDescriptorType)
        }
        made = (type(kind), kind.__name__, kind.__bases__, first)
        return a_class, made, inside, None, None, fill_class

    class Saver(pickle.Pickler):
        def __init__(self, file):
            super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)

        def reducer_override(self, value):
            kind = type(value)
            if kind is types.FunctionType:
                return of_function(value)
            if isinstance(value, type):
                return of_class(value)
            if kind is types.CellType:
                raise pickle.PicklingError("a cell of a closure")
            if kind is types.ModuleType:
                if sys.modules.get(value.__name__) is not value:
                    raise pickle.PicklingError("module %s cannot be imported by its name" % value.__name__)
                return a_module, (value.__name__,)
            if kind is property:
                return property, (value.fget, value.fset, value.fdel, value.__doc__)
            if kind is staticmethod or kind is classmethod:
                return kind, (value.__func__,)
            if kind is types.MappingProxyType:
                return a_mapping, (dict(value),)
            if kind.__module__ == "dataclasses":
                for name in DATACLASSES:
                    if getattr(sys.modules["dataclasses"], name, None) is value:
                        return getattr, (sys.modules["dataclasses"], name)
            return NotImplemented

    return Saver


# --- loading


def a_module(name):
    import importlib

    return importlib.import_module(name)


def a_cell(number):
    import types

    cell = CELLS.get(number)
    if cell is None:
        cell = CELLS[number] = types.CellType()
    return cell


def a_function(code, home, cells):
    import marshal
    import types

    place = NAMESPACE if home == "__main__" else a_module(home).__dict__
    cells = tuple(a_cell(number) for number in cells)
    return types.FunctionType(marshal.loads(code), place, "f", None, cells)


def fill_function(function, state):
    for cell, content in zip(function.__closure__ or (), state.pop("cells")):
        if not (isinstance(content, str) and content == EMPTY):
            cell.cell_contents = content
    function.__dict__.update(state.pop("__dict__"))
    for name, value in state.items():
        setattr(function, name, value)


def a_mapping(inside):
    import types

    return types.MappingProxyType(inside)


def a_class(metaclass, name, bases, first):
    return metaclass(name, bases, dict(first))


def a_named_tuple(name, fields, defaults):
    import collections

    made = collections.namedtuple(name, fields, defaults=list(defaults.values()), module="__main__")
    return made


def fill_class(kind, attributes):
    for name, value in attributes.items():
        type.__setattr__(kind, name, value)


def load(runner, message, module):
    import linecache
    import pickle

    dropped, names = {}, []
    fd = os.open(message["path"], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        os.unlink(message["path"])
        try:
            if file.readline(len(MAGIC)) != MAGIC:
                raise ValueError("it is no file of variables")
            head = json.loads(file.readline(64 << 20))
            for place in head["path"]:
                if place not in sys.path and os.path.isdir(place):
                    sys.path.append(place)
            found = {}
            for name, known in head["modules"].items():
                try:
                    found[name] = a_module(known)
                except Exception as error:
                    dropped[name] = why(error)
            sys.modules[module.__name__] = module
            try:
                found.update(pickle.Unpickler(file).load())
            finally:
                sys.modules.pop(module.__name__, None)
            for name, text in json.loads(file.read(4 * SOURCES_BYTES_MAX)).items():
                linecache.cache[name] = (len(text), None, text.splitlines(True), name)
            runner.namespace.update(found)
            runner.cells = max(runner.cells, int(head["cells"]))
            names = list(found)
            # A file of before says nothing of it.
            dropped.update((str(name), str(reason)) for name, reason in head.get("dropped", {}).items())
        except BaseException as error:
            return {"error": why(error)}
    return report({}, names, dropped, message["named_max"])
