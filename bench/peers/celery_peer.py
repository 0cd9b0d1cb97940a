"""Measures Celery on Redis: a worker of concurrency 2 runs no-op tasks; prints one JSON object.

tasks_per_s: apply_async() of all tasks until the last result is here.
round_trip_ms: apply_async() until its result is here, one at a time, at the rate given.
"""

import json
import subprocess
import sys
import time
from importlib.metadata import version

from celery_app import app, noop

TIMEOUT_S = 60


def throughput(count):
    begin = time.perf_counter()
    for result in [noop.apply_async() for _ in range(count)]:
        result.get(timeout=TIMEOUT_S)
    return count / (time.perf_counter() - begin)


def round_trips(count, rate):
    samples, due = [], time.perf_counter()
    for _ in range(count):
        due = max(due + 1 / rate, time.perf_counter())
        time.sleep(max(0, due - time.perf_counter()))
        begin = time.perf_counter()
        noop.apply_async().get(timeout=TIMEOUT_S)
        samples.append((time.perf_counter() - begin) * 1000)
    return samples


def main(tasks, singles, rate):
    command = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "--loglevel", "error"]
    worker = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    try:
        noop.apply_async().get(timeout=TIMEOUT_S)
        throughput(200)
        per_s = throughput(tasks)
        samples = round_trips(singles, rate)
    finally:
        worker.terminate()
        worker.wait(timeout=TIMEOUT_S)
    return {"version": version("celery"), "tasks_per_s": per_s, "tasks": tasks, "round_trip_ms": samples}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:4]))))
