#!/usr/bin/env bash
# Tests several workers of docker-compose.yml: where sessions go, that they do not see each other, scaling, a partition.
#
#   scripts/test-multi-worker.sh [part...]      needs the images (make docker-build); uses a compose project of its own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/docker-cluster.sh
source scripts/docker-cluster.sh

two_workers() {
  COMPOSE_PROFILES=multi-worker up >/dev/null
  within 10 'two workers are registered' is 2 workers ready
}

six_sessions() {
  local number
  sessions=()
  for number in 1 2 3 4 5 6; do sessions+=("$(cooper session create --name "s$number")"); done
  same 'six sessions are spread three and three' '3 worker-1,3 worker-2,' \
    "$(for session in "${sessions[@]}"; do worker_of "$session"; done | sort | uniq -c | awk '{printf "%s %s,", $1, $2}')"
}

files_at_once() {
  local session pids=() pid
  for session in "${sessions[@]}"; do
    (
      for round in 1 2 3; do
        echo "$session $round" | cooper files put "$session" - "file-$round" >/dev/null
        [[ "$(cooper files cat "$session" "file-$round")" == "$session $round" ]]
      done
    ) &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || fail 'a file operation beside others'; done
  ok 'files of all sessions are written and read at the same time'
}

packages_apart() {
  local can='import importlib.util as i; print(*(bool(i.find_spec(n)) for n in ("six", "colorama")))'
  cooper packages install s1 six >/dev/null & local first=$!
  cooper packages install s2 colorama >/dev/null & local second=$!
  wait "$first" || fail 'packages install six'
  wait "$second" || fail 'packages install colorama'
  same 's1 has what it installed, and not what s2 did' 'True False' "$(cooper exec s1 -c "$can")"
  same 's2 has what it installed, and not what s1 did' 'False True' "$(cooper exec s2 -c "$can")"
}

# The container whose worker has this id: its slot says which it is.
container_of() {
  local container
  for container in $(docker compose --profile multi-worker ps -q worker worker-2); do
    if docker exec "$container" cooper --url http://127.0.0.1:50052 --json health | grep -q "\"$1\""; then echo "$container"; return; fi
  done
  fail "no container runs $1"
}

partition() {
  local task container network="${COOPER_PROJECT}_control" worker
  worker="$(worker_of s1)"
  container="$(container_of "$worker")"
  task="$(cooper exec s1 --background -c 'import time
for i in range(120): print(i, flush=True); time.sleep(0.1)')"
  within 10 'a task runs' is running task_state "$task"
  docker network disconnect "$network" "$container"
  # A coordinator that has just started suspects nobody for a while.
  within 90 'a worker that is cut off is suspected' is 1 workers suspect
  docker network connect "$network" "$container"
  within 40 'it is back when the network is' is 2 workers ready
  same 'its task went on meanwhile, every byte of it' "$(seq 0 119)" "$(cooper tasks follow "$task")"
}

scaling() {
  local number
  remove
  up --scale worker=3 >/dev/null
  within 15 'three replicas are three workers' is 3 workers ready
  same 'each has a slot of its own' 'worker-1 worker-2 worker-3' \
    "$(cooper --json workers | tr -d '\n ' | grep -o '"worker_id":"[^"]*"' | cut -d'"' -f4 | sort | xargs)"
  for number in 1 2 3; do
    cooper session create --name "r$number" >/dev/null
    cooper exec "r$number" -c "open('mine', 'w').write('r$number')" >/dev/null
  done
  compose up -d --no-build --wait --scale worker=3 --force-recreate
  within 30 'recreated replicas are the same three workers' is 3 workers ready
  for number in 1 2 3; do
    within 30 "session r$number is back" is ready state_of "r$number"
    same "with its files" "r$number" "$(cooper exec "r$number" -c 'print(open("mine").read())')"
  done
  compose up -d --no-build --wait --scale worker=1
  for number in 1 2 3; do
    within 40 "session r$number goes on where there is room" is ready state_of "r$number"
    same "with its files" "r$number" "$(cooper exec "r$number" -c 'print(open("mine").read())')"
  done
}

readonly parts=(six_sessions files_at_once packages_apart partition scaling)

test_parts two_workers "$@"
