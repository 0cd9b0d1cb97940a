#!/usr/bin/env bash
# Starts the cluster of docker-compose.dev.yml: the binary in target/debug (or COOPER_BIN_DIR), built if it is not there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly wait_seconds_max=60

main() {
  local bin="${COOPER_BIN_DIR:-target/debug}" start=$SECONDS
  [[ -x "$bin/cooper" ]] || cargo build --locked -p cooper --bin cooper
  scripts/base-images.sh
  mkdir -p tmp/dev/coordinator
  touch tmp/dev/built
  docker compose -f docker-compose.dev.yml up -d --wait --wait-timeout "$wait_seconds_max" "$@"
  printf 'docker-up-dev: healthy after %s s; workspaces are in tmp/dev\n' $((SECONDS - start))
}

main "$@"
