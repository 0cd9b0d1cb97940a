#!/usr/bin/env bash
# Builds and restarts the cluster of docker-compose.dev.yml whenever sources change; prints how long each time took.
#
#   scripts/watch.sh [--once]      --once: build and restart now, wait until it is healthy, and end
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly sources=(Cargo.toml Cargo.lock proto core repair common coordinator worker cli)

restart() {
  local start=$SECONDS
  cargo build --locked -p cooper --bin cooper || return
  touch tmp/dev/built
  docker compose -f docker-compose.dev.yml restart --timeout 5
  docker compose -f docker-compose.dev.yml up -d --wait --wait-timeout 60
  printf 'watch: runs what was built, after %s s\n' $((SECONDS - start))
}

main() {
  if [[ "${1:-}" == --once ]]; then restart; return; fi
  scripts/docker-up-dev.sh
  local seen=tmp/dev/seen
  touch "$seen"
  echo 'watch: waiting for changes; Ctrl-C ends it, the cluster stays (docker compose -f docker-compose.dev.yml down)'
  while sleep 0.5; do
    [[ -n "$(find "${sources[@]}" -newer "$seen" -type f -print -quit)" ]] || continue
    touch "$seen"
    restart || echo 'watch: not restarted' >&2
  done
}

main "$@"
