# Sourced by the tests of docker-compose.yml: a cluster of their own beside whatever else runs here, and how to ask it.
#
#   COOPER_PROJECT   the compose project (default cooper-test); its containers and volumes are removed at the end
#   COOPER_KEEP=1    leaves them for a look
# shellcheck shell=bash

export COOPER_PROJECT="${COOPER_PROJECT:-cooper-test}"
export COOPER_SECRETS="${COOPER_SECRETS:-$PWD/target/$COOPER_PROJECT}"
# Any free port: others may have a cluster here.
export GRPC_PORT="${GRPC_PORT:-0}"
# Faults are noticed in seconds.
export LOG_LEVEL="${LOG_LEVEL:-info}"
checks=0

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  docker compose --profile multi-worker --profile stack logs --no-color --tail 40 >&2 || true
  exit 1
}

# ok WHAT: a claim that was just shown.
ok() { checks=$((checks + 1)); printf '  ok  %s\n' "$*"; }

# same WHAT WANTED GOT
same() { [[ "$2" == "$3" ]] && { ok "$1"; return; }; fail "$1: expected '$2', got '$3'"; }

# up OPTION...: like scripts/docker-up.sh, what compose says only when that fails.
up() {
  local log="$COOPER_SECRETS.log"
  mkdir -p "$(dirname "$log")"
  scripts/docker-up.sh "$@" 2>"$log" || { tail -n 20 "$log" >&2; fail "docker-up $*"; }
}

# compose ARGUMENT...: the same of other commands of compose.
compose() {
  local said
  said="$(docker compose "$@" 2>&1)" || { tail -n 20 <<<"$said" >&2; fail "docker compose $*"; }
}

# The command line, inside of the coordinator's container: nothing has to be installed here.
cooper() { docker compose exec -T coordinator cooper "$@"; }

# field NAME: the last such text or number of a JSON document.
field() { printf '%s\n' "$(tr -d '\n' | sed -nE "s/.*\"$1\": *\"?([^\",}]*)\"?.*/\1/p")"; }

# How many workers are in a state: ready, suspect, lost, …
workers() { cooper --json workers | tr -d '\n ' | grep -o "\"state\":\"$1\"" | wc -l; }
worker_of() { cooper --json session show "$1" | field worker_id; }
state_of() { cooper --json session show "$1" | field state; }
task_state() { cooper --json tasks show "$1" | field state; }

# within SECONDS WHAT COMMAND...: until the command succeeds.
within() {
  local seconds="$1" what="$2" end; shift 2
  end=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || fail "$what: not within $seconds s"
    sleep 0.3
  done
  ok "$what"
}
is() { [[ "$("${@:2}")" == "$1" ]]; }

remove() {
  docker compose --profile multi-worker --profile stack down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 || true
  docker compose --project-name "$COOPER_PROJECT-stack" down --volumes --rmi local --timeout 5 >/dev/null 2>&1 || true
  [[ -n "${COOPER_KEEP_SECRETS:-}" ]] || rm -rf "$COOPER_SECRETS"
}

# test_parts FIRST PART...: begins with a cluster by FIRST; then the named parts, or all of `parts`.
test_parts() {
  local first="$1" part; shift
  local wanted=("$@")
  ((${#wanted[@]})) || wanted=("${parts[@]}")
  trap 'status=$?; if [[ -z "${COOPER_KEEP:-}" ]]; then remove; fi; exit $status' EXIT
  remove
  "$first"
  for part in "${wanted[@]}"; do
    printf '    %s\n' "${part//_/ }"
    "$part"
  done
  printf '%s: %d checks passed in %d s\n' "$(basename "$0")" "$checks" "$SECONDS"
}
