#!/usr/bin/env bash
# Builds Cooper's images: cooper-coordinator, cooper-worker, cooper-stack-worker.
#
#   scripts/docker-build.sh [service...]      default: coordinator worker stack-worker
#
# Base images are pulled, or made here where no registry answers (scripts/base-images.sh). Behind a proxy with an authority
# of its own the build trusts what this machine is told to trust by SSL_CERT_FILE, and finds packages by this user's
# configurations of cargo and pip; COOPER_BUILD_CA, COOPER_BUILD_CARGO_CONFIG and COOPER_BUILD_PIP_CONFIG name other files.
# None of that is left in an image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# first_file FILE...: the first that can be read.
first_file() { local file; for file in "$@"; do if [[ -n "$file" && -r "$file" ]]; then realpath "$file"; return; fi; done; echo /dev/null; }

size() { echo $(($(docker image inspect --format '{{.Size}}' "$1") / 1000000)); }

main() {
  local services=("$@") start=$SECONDS image
  ((${#services[@]})) || services=(coordinator worker stack-worker)
  command -v docker >/dev/null || { echo 'docker-build: there is no docker; scripts/ensure-engine.sh sets one up on Debian' >&2; exit 1; }
  if [[ -z "${COOPER_RUST_IMAGE:-}${COOPER_DEBIAN_IMAGE:-}${COOPER_PYTHON_IMAGE:-}" ]]; then
    scripts/base-images.sh debian:bookworm-slim python:3.11-slim rust:1-bookworm
  fi
  export COOPER_BUILD_CA="${COOPER_BUILD_CA:-$(first_file "${SSL_CERT_FILE:-}")}"
  export COOPER_BUILD_CARGO_CONFIG="${COOPER_BUILD_CARGO_CONFIG:-$(first_file "${CARGO_HOME:-$HOME/.cargo}/config.toml")}"
  export COOPER_BUILD_PIP_CONFIG="${COOPER_BUILD_PIP_CONFIG:-$(first_file "${PIP_CONFIG_FILE:-}" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" /etc/pip.conf)}"
  export COOPER_COMMIT="${COOPER_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || true)}"
  docker compose --profile stack build "${services[@]}"
  printf 'docker-build: built in %s s\n' $((SECONDS - start))
  for image in "${services[@]}"; do
    image="${COOPER_IMAGE:-cooper}-$image:${COOPER_TAG:-latest}"
    printf '  %-32s %5d MB\n' "$image" "$(size "$image")"
  done
}

main "$@"
