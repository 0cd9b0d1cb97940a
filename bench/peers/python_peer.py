"""Measures Python by itself, as one would use it without Cooper; prints one JSON object.

venv_to_first_result_ms: `python -m venv` and then `python -c "print(1+1)"` in it, a new one each time.
run_in_venv_ms: `python -c` in a venv that is there.
import_science_ms: `python -c "import numpy, pandas"` with the packages on PYTHONPATH.
install_warm_ms: `pip install` of one small package into a new venv, from pip's cache.
install_cold_ms: the same without a cache.
"""

import json
import os
import platform
import subprocess
import sys
import time

PACKAGE = "idna==3.10"


def timed(*command, **more):
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **more)
    return (time.perf_counter() - begin) * 1000


def main(starts, warm, cold, home, layer):
    base = getattr(sys, "_base_executable", sys.executable)
    fresh = iter(range(1000))

    def venv(*options):
        place = os.path.join(home, "venv%d" % next(fresh))
        return timed(base, "-m", "venv", *options, place), os.path.join(place, "bin", "python")

    first = []
    for _ in range(starts):
        made, python = venv("--without-pip")
        first.append(made + timed(python, "-c", "print(1+1)"))
    run = [timed(python, "-c", "print(1+1)") for _ in range(starts)]
    science = dict(os.environ, PYTHONPATH=layer)
    imports = [timed(python, "-c", "import numpy, pandas", env=science) for _ in range(starts)]

    def install(*options):
        _, python = venv()
        return timed(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *options, "install", PACKAGE)

    cache = ("--cache-dir", os.path.join(home, "cache"))
    install(*cache)
    return {
        "version": platform.python_version(),
        "venv_to_first_result_ms": first,
        "run_in_venv_ms": run,
        "import_science_ms": imports,
        "install_warm_ms": [install(*cache) for _ in range(warm)],
        "install_cold_ms": [install("--no-cache-dir") for _ in range(cold)],
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:4]), *sys.argv[4:6])))
