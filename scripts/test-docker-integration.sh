#!/usr/bin/env bash
# Tests the shipped images with docker-compose.yml on this machine's engine: coordinator and worker are healthy, sessions
# work and are kept in, and what happens when containers are killed, restarted and upgraded.
#
#   scripts/test-docker-integration.sh [part...]      needs the images (make docker-build); uses a compose project of its own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/docker-cluster.sh
source scripts/docker-cluster.sh

inspect() { docker inspect --format "$2" "$(docker compose ps -q "$1")"; }

starts() {
  local said seconds
  said="$(up)" || exit 1
  seconds="$(sed -nE 's/.*healthy after ([0-9]+) s/\1/p' <<<"$said")"
  printf '      healthy after %s s (budget 5)\n' "$seconds"
  for service in coordinator worker; do
    same "$service is healthy" healthy "$(inspect "$service" '{{.State.Health.Status}}')"
    same "$service has a read-only root" true "$(inspect "$service" '{{.HostConfig.ReadonlyRootfs}}')"
    same "$service is not privileged" false "$(inspect "$service" '{{.HostConfig.Privileged}}')"
  done
  same 'the coordinator is not root' no "$(docker compose exec -T coordinator sh -c '[ "$(id -u)" != 0 ] && echo no || echo root')"
  same 'the port is published on 127.0.0.1' 127.0.0.1 "$(docker compose port coordinator 50051 | cut -d: -f1)"
  same 'tokens and keys are for their owner alone' '' "$(find "$COOPER_SECRETS" -type f \( -name '*.token' -o -name '*.key' \) ! -perm 600)"
  # shellcheck disable=SC2016 # a shell in the container expands it
  same 'there is a shell beside the coordinator' shell "$(docker compose exec -T coordinator sh -c 'echo shell')"
  same 'there is a bash beside the worker' bash "$(docker compose exec -T worker bash -c 'echo bash')"
}

# Of the images as they are shipped; what they are built upon is not counted.
images_are_small() {
  local coordinator worker
  coordinator="$(size_of coordinator)" worker=$(($(size_of worker) - $(docker image inspect --format '{{.Size}}' "${COOPER_PYTHON_IMAGE:-python:3.11-slim}") / 1000000))
  printf '      coordinator %d MB (budget 60), worker %d MB above its base (budget 250)\n' "$coordinator" "$worker"
  if [[ "${COOPER_PROFILE:-release}" != release ]]; then echo "      budgets are for releases, not for profile $COOPER_PROFILE"; return; fi
  ((coordinator <= 60)) || fail 'the image of the coordinator is too large'
  ((worker <= 250)) || fail 'the image of the worker is too large'
  ok 'images are as small as they have to be'
}
size_of() { echo $(($(docker image inspect --format '{{.Size}}' "${COOPER_IMAGE:-cooper}-$1:${COOPER_TAG:-latest}") / 1000000)); }

registers() {
  within 10 'the worker is registered' is 1 workers ready
  same 'its id is that of its slot' worker-1 "$(cooper --json workers | field worker_id)"
  same 'its sessions have tier T1' T1 "$(cooper --json workers | field tier)"
}

strangers_stay_out() {
  # The token alone opens the link to nobody.
  if docker compose run --rm --no-deps -T -e COOPER_TLS_CLIENT_CERT= -e COOPER_TLS_CLIENT_KEY= -e WORKER_ID=stranger \
      -e COOPER_SLOTS=/tmp/slots --entrypoint timeout worker 4 cooper worker >/dev/null 2>&1; then :; fi
  same 'a worker without a certificate is not let in' '' "$(cooper --json workers | grep -o stranger || true)"
}

sessions_work() {
  local session
  session="$(cooper session create)"
  same 'code runs' 42 "$(cooper exec "$session" -c 'print(6 * 7)')"
  same 'it runs in a virtual environment' True "$(cooper exec "$session" -c 'import sys; print(sys.prefix != sys.base_prefix)')"
  cooper packages install "$session" six >/dev/null || fail 'packages install'
  same 'packages are installed' True "$(cooper exec "$session" -c 'import six; print(bool(six.__version__))')"
  cooper session destroy "$session" >/dev/null
}

sessions_are_kept_in() {
  local session
  session="$(cooper session create --network public)"
  same 'a session reaches no coordinator' kept "$(cooper exec "$session" -c '
import socket
try:
    s = socket.create_connection(("coordinator", 50051), 3); s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    print("reached" if s.recv(1) else "kept")
except OSError:
    print("kept")')"
  same 'a session reads no secret' kept "$(cooper exec "$session" -c '
try:
    open("/run/secrets/worker_token").read(); print("read")
except OSError:
    print("kept")')"
  cooper session destroy "$session" >/dev/null
}

worker_is_killed() {
  local session task
  session="$(cooper session create)"
  cooper exec "$session" -c 'open("kept.txt", "w").write("kept")' >/dev/null
  task="$(cooper exec "$session" --background -c 'import time; time.sleep(300)')"
  within 10 'a task runs' is running task_state "$task"
  compose kill worker
  compose up -d --no-build --wait worker
  within 90 'a task of a worker that was killed is lost, and said to be' is lost task_state "$task"
  same 'its session has its files again' kept "$(cooper exec "$session" -c 'print(open("kept.txt").read())')"
  cooper session destroy "$session" >/dev/null
}

coordinator_is_restarted() {
  local session tasks=() task wanted
  wanted="$(seq 0 39)"
  for _ in 1 2 3 4; do
    session="$(cooper session create)"
    tasks+=("$(cooper exec "$session" --background -c 'import time
for i in range(40): print(i, flush=True); time.sleep(0.1)')")
  done
  compose restart --timeout 5 coordinator
  within 20 'the coordinator is healthy again' is healthy inspect coordinator '{{.State.Health.Status}}'
  for task in "${tasks[@]}"; do
    same 'what ran meanwhile went on, every byte of it' "$wanted" "$(cooper tasks follow "$task")"
  done
}

images_are_upgraded() {
  local session before
  session="$(cooper session create)"
  cooper exec "$session" -c 'import threading
number, lock = 41, threading.Lock()
open("kept.txt", "w").write("kept")' >/dev/null
  before="$(inspect worker '{{.Image}}')"
  for image in coordinator worker; do
    printf 'FROM %s\nLABEL cooper.test=next\n' "${COOPER_IMAGE:-cooper}-$image:${COOPER_TAG:-latest}" |
      docker build -q -t "${COOPER_IMAGE:-cooper}-$image:next" - >/dev/null
  done
  COOPER_TAG=next scripts/docker-upgrade.sh >"$COOPER_SECRETS.log" 2>&1 || { tail "$COOPER_SECRETS.log" >&2; fail 'docker-upgrade'; }
  [[ "$(inspect worker '{{.Image}}')" != "$before" ]] || fail 'the worker still runs the image of before'
  ok 'coordinator and worker run the new images'
  within 30 'the session is ready again' is ready state_of "$session"
  same 'with its files' kept "$(cooper exec "$session" -c 'print(open("kept.txt").read())')"
  same 'and the variables that could be saved' 42 "$(cooper exec "$session" -c 'print(number + 1)')"
  grep -q 'left out: lock' "$COOPER_SECRETS.log" || fail 'the lock is listed nowhere'
  ok 'what could not be kept is listed'
  compose up -d --no-build --wait
  docker image rm "${COOPER_IMAGE:-cooper}-coordinator:next" "${COOPER_IMAGE:-cooper}-worker:next" >/dev/null
}

science_is_loaded() {
  local session loaded
  session="$(cooper session create)"
  loaded="$(cooper exec "$session" -c 'import sys; loaded = {"numpy", "pandas"} <= set(sys.modules)
import pandas; print(loaded, pandas.DataFrame({"a": [1, 2, 3]})["a"].sum())')"
  cooper session destroy "$session" >/dev/null
  [[ "$loaded" == 'True 6' ]]
}

# The same worker with the packages for science in it: they are loaded before a session asks.
science_is_at_hand() {
  local session coordinator="${COOPER_IMAGE:-cooper}-coordinator" worker="${COOPER_IMAGE:-cooper}-worker"
  # Minutes of downloads, which `make test` has no time for.
  if [[ "${COOPER_PROFILE:-release}" != release ]]; then echo "      left to make docker-test: this is profile $COOPER_PROFILE"; return; fi
  COOPER_PRELOAD=science COOPER_TAG=science scripts/docker-build.sh worker >"$COOPER_SECRETS.log" 2>&1 ||
    { tail "$COOPER_SECRETS.log" >&2; fail 'docker-build with COOPER_PRELOAD=science'; }
  printf '      with numpy, pandas and matplotlib the worker has %d MB\n' "$(COOPER_TAG=science size_of worker)"
  docker tag "$coordinator:${COOPER_TAG:-latest}" "$coordinator:science"
  COOPER_TAG=science compose up -d --no-build --wait
  # Until the first interpreter has loaded them sessions start without.
  within 30 'numpy and pandas are loaded before a session asks' science_is_loaded
  session="$(cooper session create)"
  same 'matplotlib draws' True "$(cooper exec "$session" -c '
import io, matplotlib.pyplot as plt
plt.plot([1, 2]); out = io.BytesIO(); plt.savefig(out); plt.close(); print(len(out.getvalue()) > 1000)')"
  cooper session destroy "$session" >/dev/null
  compose up -d --no-build --wait
  docker image rm "$coordinator:science" "$worker:science" >/dev/null
}

# A stack that binds `./data`, repaired by the worker that holds the engine's socket; and one that lies elsewhere in it.
a_stack_is_repaired() {
  local dir said port
  dir="$(mktemp -d)" port="$(docker compose port coordinator 50051 | cut -d: -f2)"
  cp -r examples/stack/. "$dir"
  mkdir "$dir/data"
  echo kept >"$dir/data/word"
  printf 'name: %s-stack\nservices:\n  web:\n    volumes: ["./data:/data:ro"]\n' "$COOPER_PROJECT" >"$dir/compose.override.yaml"
  export COOPER_STACK_DIR="$dir" COOPER_STACK_COORDINATOR_ADDR="https://localhost:$port" COOPER_STACK_HEALTH_PORT=50063
  (cd "$dir" && docker compose up -d --build --wait && ./break.sh missing-python-package && docker compose up -d --build) \
    >"$COOPER_SECRETS.log" 2>&1 || { tail "$COOPER_SECRETS.log" >&2; fail 'the example stack'; }
  compose --profile stack up -d --no-build --no-deps --wait stack-worker
  said="$(cooper repair web --stack stack 2>&1)" || { echo "$said" >&2; fail 'the repair'; }
  ok 'a stack is repaired by the worker that holds the socket'
  same 'its ./data is that of this machine' kept "$(cd "$dir" && docker compose exec -T web cat /data/word)"
  compose --profile stack run -d --no-deps -v "$dir:/elsewhere" -e COOPER_STACKS=moved=/elsewhere -e WORKER_ID=moved \
    -e COOPER_SLOTS=/tmp/slots -e GRPC_PORT=50064 stack-worker
  within 15 'another worker has it at another path' sh -c "docker compose exec -T coordinator cooper stacks list | grep -q moved"
  said="$(cooper stacks check moved 2>&1 || true)"
  grep -q 'takes .*/elsewhere/data from' <<<"$said" || { echo "$said" >&2; fail 'a check does not say that a stack lies elsewhere'; }
  said="$(cooper repair web --stack moved 2>&1 || true)"
  grep -q 'takes .*/elsewhere/data from' <<<"$said" || { echo "$said" >&2; fail 'a stack that lies elsewhere is not refused'; }
  ok 'a stack whose binds the engine would take from elsewhere is refused, and why'
  (cd "$dir" && docker compose down --volumes --rmi local) >/dev/null 2>&1
  rm -rf "$dir"
}

readonly parts=(images_are_small registers strangers_stay_out sessions_work sessions_are_kept_in worker_is_killed coordinator_is_restarted images_are_upgraded science_is_at_hand a_stack_is_repaired)

test_parts starts "$@"
