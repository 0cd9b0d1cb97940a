#!/usr/bin/env bash
# Everything that proves Cooper, in stages: set-up, build, unit (also properties and real stacks), e2e, lint, docker (the
# images that are shipped, docker-compose.yml, and the Debian package).
#
#   scripts/test.sh [stage...]      default: all of them, in this order; lint and docker side by side
#
#   COOPER_TEST_SKIP=docker   leaves out what needs a Docker engine; the summary says so
#   COOPER_TEST_FILTER=NAME   of the end-to-end tests only those whose name contains NAME, e.g. e2e::repair::
#
# Logs of the stages are in target/test. The whole takes at most 50 minutes, or it fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly stages=(set-up build unit e2e lint docker) minutes_max=50
# Most of what runs end to end waits for something.
readonly e2e_threads=4
logs=target/test

skips_docker() { [[ ",${COOPER_TEST_SKIP:-}," == *,docker,* ]]; }

set_up() {
  local missing=() tool
  # Command and the Debian package that has it.
  for tool in git:git python3:python3 node:nodejs npm:npm make:make cc:build-essential curl:curl; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
  done
  python3 -m ensurepip --version >/dev/null 2>&1 || missing+=(python3-venv)
  # Without these the run under faults leaves some faults out, and says so.
  if ((EUID == 0)); then
    for tool in ip:iproute2 iptables:iptables faketime:faketime; do
      command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
    done
  fi
  if ((${#missing[@]})); then
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
      echo "test: install ${missing[*]}" >&2
      return 1
    fi
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}"
  fi
  skips_docker || { scripts/ensure-engine.sh && scripts/base-images.sh; }
}

lint() { make --no-print-directory lint; }

# One selection of packages and targets for all of these, or features differ and dependencies are built twice; names
# tell the end-to-end tests from the others.
# The binary under test has failpoints, which the one that is shipped has not.
readonly selection=(--workspace --locked --features cooper/failpoints)
build() { cargo build "${selection[@]}" --all-targets; }
unit()  { cargo test "${selection[@]}" --no-fail-fast -- --skip=e2e::; }
e2e()   { cargo test "${selection[@]}" --tests --no-fail-fast -- --test-threads="$e2e_threads" "${COOPER_TEST_FILTER:-e2e::}"; }

# The images of the real Dockerfile; compiled as the tests' own binary is, since a release takes as long as all of the rest.
# `make docker-build docker-test docker-test-multi` do the same with the release, and see to its size.
docker() {
  if skips_docker; then echo "skipped by request: images and docker-compose.yml (COOPER_TEST_SKIP=$COOPER_TEST_SKIP)"; return; fi
  export COOPER_PROFILE="${COOPER_PROFILE:-dev}" COOPER_TAG=test
  # One behind the other by `&&`: `set -e` does not hold in here, as main looks at how a stage ends.
  scripts/docker-build.sh && scripts/test-docker-integration.sh && scripts/test-multi-worker.sh && scripts/test-package.sh &&
    command docker image rm cooper-coordinator:test cooper-worker:test cooper-stack-worker:test >/dev/null
}

# stage NAME: runs it, its output also in a log; its seconds and its verdict.
stage() {
  local name="$1" start=$SECONDS verdict=ok
  printf '\n== %s\n' "$name"
  set +e
  (set -e; "${name//-/_}") 2>&1 | tee "$logs/$name.log"
  ((PIPESTATUS[0] == 0)) || verdict=failed
  set -e
  table+=("$(printf '%-8s %6d s  %s' "$name" $((SECONDS - start)) "$verdict")")
  [[ "$verdict" == ok ]] || { failed+=("$name"); return 1; }
}

summary() {
  printf '\n== summary\n'
  printf '%s\n' "${table[@]}"
  printf '%-8s %6d s\n' total "$SECONDS"
  cat "$logs"/*.log | grep -h '^skipped by request' | sort -u || true
  if skips_docker; then echo "skipped by request: setting up the engine and base images (COOPER_TEST_SKIP=$COOPER_TEST_SKIP)"; fi
  cat "$logs"/*.log | grep -hE '^docker-build: built|checks passed in' || true
  cat "$logs"/*.log | grep -hE '^kept for a look|^chaos: left out' | sort -u || true
  if ((SECONDS > minutes_max * 60)); then failed+=("more than $minutes_max minutes"); fi
  if ((${#failed[@]})); then
    # What failed is said where who reads a log begins: at its end.
    cat "$logs"/*.log | grep -hE '^test .* FAILED$' | sort -u || true
    printf 'failed: %s\n' "${failed[@]}"
    return 1
  fi
  echo 'everything passed'
}

main() {
  local wanted=("$@") name beside=''
  ((${#wanted[@]})) || wanted=("${stages[@]}")
  table=() failed=()
  rm -rf "$logs"
  mkdir -p "$logs"
  for name in "${wanted[@]}"; do
    if [[ "$name" == lint && " ${wanted[*]} " == *" docker "* ]]; then
      # It compiles while containers are waited for.
      (stage lint >"$logs/lint.out" 2>&1 && status=0 || status=1; echo "${table[-1]}" >"$logs/lint.row"; exit $status) &
      beside=$!
      continue
    fi
    [[ " ${stages[*]} " == *" $name "* ]] || { echo "test: no stage $name; there are: ${stages[*]}" >&2; return 2; }
    # Without tools or a build there is nothing to go on with; a finding of lint or a failed test hides no other.
    stage "$name" || [[ "$name" != set-up && "$name" != build ]] || break
  done
  if [[ -n "$beside" ]]; then
    wait "$beside" || failed+=(lint)
    cat "$logs/lint.out"
    table+=("$(cat "$logs/lint.row")")
  fi
  summary
}

main "$@"
