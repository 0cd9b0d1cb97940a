"""Measures Celery on Redis: a worker of concurrency 2 runs no-op tasks; prints one JSON object.

tasks_per_s: apply_async() of all tasks until the last result is here.
round_trip_ms: apply_async() until its result is here, one at a time, at the rate given.
in_flight_ms: the same with 1, 16 and 64 on their way all the time.
"""

import collections
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


def in_flight(count, width):
    """The oldest is awaited and followed by a new one, so that `width` are always on their way."""
    samples, waiting = [], collections.deque()
    for number in range(count + width):
        if len(waiting) == width:
            begin, result = waiting.popleft()
            result.get(timeout=TIMEOUT_S)
            samples.append((time.perf_counter() - begin) * 1000)
        if number < count:
            waiting.append((time.perf_counter(), noop.apply_async()))
    for begin, result in waiting:
        result.get(timeout=TIMEOUT_S)
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
        closed = {str(width): in_flight(tasks // 4, width) for width in (1, 16, 64)}
    finally:
        worker.terminate()
        worker.wait(timeout=TIMEOUT_S)
    return {
        "version": version("celery"),
        "tasks_per_s": per_s,
        "tasks": tasks,
        "round_trip_ms": samples,
        "in_flight_ms": closed,
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:4]))))
