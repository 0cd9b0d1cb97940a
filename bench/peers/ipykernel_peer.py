"""Measures a Jupyter kernel as jupyter_client drives it; prints one JSON object.

start_to_first_reply_ms: start_kernel() until the reply to `1+1`, a new kernel each time.
round_trip_ms: execute() until both the reply and the idle status came, one kernel, sequential.
private_bytes: smaps_rollup Private_* of each of several kernels that idle at the same time.
"""

import json
import sys
import time
from importlib.metadata import version

from jupyter_client import KernelManager

TIMEOUT_S = 30


def start():
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    client.wait_for_ready(timeout=TIMEOUT_S)
    return kernel, client


def execute(client, code):
    request = client.execute(code)
    while client.get_shell_msg(timeout=TIMEOUT_S)["parent_header"].get("msg_id") != request:
        pass
    while True:
        message = client.get_iopub_msg(timeout=TIMEOUT_S)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["header"]["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return


def stop(kernel, client):
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


def private_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        fields = (line.split() for line in rollup if line.startswith("Private_"))
        return sum(int(field[1]) * 1024 for field in fields)


def timed(work):
    begin = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - begin) * 1000


def main(starts, round_trips, idle):
    starting, kernels = [], []
    for _ in range(starts):

        def first_reply():
            kernel, client = start()
            execute(client, "1+1")
            return kernel, client

        kernel, elapsed = timed(first_reply)
        starting.append(elapsed)
        kernels.append(kernel)
        if len(kernels) > idle + 1:
            stop(*kernels.pop(0))

    _, client = kernels[0]
    execute(client, "x = 0")
    round_trip = [timed(lambda: execute(client, "x += 1\nx"))[1] for _ in range(round_trips)]
    # The one that worked is not an idle one.
    private = [private_bytes(kernel.provisioner.pid) for kernel, _ in kernels[1:]]
    for kernel in kernels:
        stop(*kernel)
    return {
        "version": version("ipykernel"),
        "start_to_first_reply_ms": starting,
        "round_trip_ms": round_trip,
        "private_bytes": private,
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:4]))))
