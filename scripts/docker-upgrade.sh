#!/usr/bin/env bash
# Brings the running cluster of docker-compose.yml to the images that are there now (or of COOPER_TAG): first the coordinator,
# while workers keep what runs, then the workers, which leave their sessions with the coordinator and take them up again.
# Says at the end what of the sessions' variables could not be kept.
#
#   scripts/docker-upgrade.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly seconds_max=60
cooper() { docker compose exec -T coordinator cooper "$@"; }
ready()  { cooper --json workers | tr -d '\n ' | grep -o '"state":"ready"' | wc -l; }

main() {
  local before end services session
  before="$(ready)"
  docker compose up -d --no-build --no-deps --wait coordinator
  end=$((SECONDS + seconds_max))
  until (($(ready) >= before)); do
    ((SECONDS < end)) || { echo "docker-upgrade: workers are not back within $seconds_max s; see docker compose logs" >&2; exit 1; }
    sleep 0.3
  done
  # Those that run, whatever their profile.
  mapfile -t services < <(docker compose --profile multi-worker --profile stack ps --services | grep worker)
  docker compose --profile multi-worker --profile stack up -d --no-build --no-deps --wait "${services[@]}"
  for session in $(cooper --json session list | tr -d '\n ' | grep -o '"session_id":"[^"]*"' | cut -d'"' -f4); do
    cooper session show "$session" | sed -n "s/^variables *\(.*left out.*\)/docker-upgrade: $session keeps of its variables \1/p"
  done
}

main "$@"
