#!/usr/bin/env bash
# Starts the cluster of docker-compose.yml and waits until it is healthy.
#
#   scripts/docker-up.sh [options of `docker compose up`...]
#
# At the first start it makes, each readable by its owner only, in deploy/secrets (or COOPER_SECRETS):
#   admin.token, worker.token   of people and of workers; further ones: cooper token create
#   tls/                        an authority, and certificates of coordinator and workers: cooper certs init
# What is there is left as it is. The coordinator runs as who calls this, or as 65532 where that is root: COOPER_USER says so
# in .env, for whoever calls `docker compose` by hand.
#
#   COOPER_HOSTS    names and addresses, with spaces between them, under which clients reach the coordinator
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly usual_user=65532:65532 wait_seconds_max=60

fail() { printf 'docker-up: %s\n' "$*" >&2; exit 1; }

# Whoever the coordinator has to be to read files that are this user's alone.
user() {
  if docker info --format '{{.SecurityOptions}}' | grep -q rootless; then echo 0:0
  elif ((EUID == 0)); then echo "$usual_user"
  else echo "$(id -u):$(id -g)"; fi
}

token() {
  local file="$secrets/$1"
  [[ -s "$file" ]] && return
  # 256 bits, as `cooper token create` makes them.
  printf 'cpr_%s\n' "$(od -An -tx1 -v -N32 /dev/urandom | tr -d ' \n')" >"$file.new"
  mv "$file.new" "$file"
  echo "docker-up: made $file"
}

certificates() {
  local host hosts=(--host coordinator)
  [[ -s "$secrets/tls/ca.crt" ]] && return
  for host in ${COOPER_HOSTS:-}; do hosts+=(--host "$host"); done
  mkdir -p "$secrets/tls"
  docker run --rm --network none --user "$(id -u):$(id -g)" -v "$(realpath "$secrets/tls"):/tls" \
    "${COOPER_IMAGE:-cooper}-coordinator:${COOPER_TAG:-latest}" certs init --dir /tls "${hosts[@]}" >/dev/null
  echo "docker-up: made an authority and certificates in $secrets/tls"
}

main() {
  local start=$SECONDS found
  export COOPER_SECRETS="${COOPER_SECRETS:-./deploy/secrets}"
  secrets="$COOPER_SECRETS"
  umask 077
  mkdir -p "$secrets"
  found="$(user)"
  if [[ -z "${COOPER_USER:-}" && "$found" != "$usual_user" ]] && ! grep -qs '^COOPER_USER=' .env; then
    echo "COOPER_USER=$found" >>.env
  fi
  export COOPER_USER="${COOPER_USER:-$(sed -n 's/^COOPER_USER=//p' .env 2>/dev/null)}"
  [[ -n "$COOPER_USER" ]] || COOPER_USER="$usual_user"
  docker image inspect "${COOPER_IMAGE:-cooper}-coordinator:${COOPER_TAG:-latest}" >/dev/null 2>&1 ||
    fail 'there are no images yet: make docker-build'
  token admin.token
  token worker.token
  certificates
  # Only root may give files away; everybody else runs the coordinator as who they are.
  if ((EUID == 0)); then
    chown "$COOPER_USER" "$secrets"/*.token "$secrets"/tls/server.* "$secrets"/tls/ca.crt
  fi

  docker compose up -d --wait --wait-timeout "$wait_seconds_max" --no-build "$@" ||
    fail 'it did not become healthy; docker compose logs says why'
  printf 'docker-up: healthy after %s s\n' $((SECONDS - start))
  cat <<END
  COOPER_URL=https://$(docker compose port coordinator 50051) COOPER_TOKEN_FILE=$secrets/admin.token COOPER_TLS_CA=$secrets/tls/ca.crt
  docker compose exec coordinator cooper status
END
}

main "$@"
