#!/usr/bin/env bash
# Tests what `make dist` makes, where it is to be used: the Debian package is installed in a container that runs systemd,
# its units start a coordinator and a worker, sessions outlive kills and an upgrade, and a removal leaves the data.
#
#   scripts/test-package.sh      takes the binary from the image cooper-coordinator (make docker-build)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly container="cooper-package-$$" image=cooper-test-systemd dist=target/package
checks=0

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  inside journalctl --no-pager -n 40 -u cooper-coordinator -u cooper-worker >&2 || true
  exit 1
}
ok() { checks=$((checks + 1)); printf '  ok  %s\n' "$*"; }
same() { [[ "$2" == "$3" ]] && { ok "$1"; return; }; fail "$1: expected '$2', got '$3'"; }
inside() { docker exec "$container" "$@"; }
cooper() { inside env COOPER_DATA=/var/lib/cooper cooper "$@"; }
within() {
  local seconds="$1" what="$2" end; shift 2
  end=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || fail "$what: not within $seconds s"
    sleep 0.3
  done
  ok "$what"
}

packages() {
  local from binary="$dist/from/cooper"
  rm -rf "$dist"
  mkdir -p "$dist/from" "$dist/next"
  from="$(docker create "${COOPER_IMAGE:-cooper}-coordinator:${COOPER_TAG:-latest}")"
  docker cp -q "$from:/usr/local/bin/cooper" "$binary"
  docker rm "$from" >/dev/null
  COOPER_DIST="$dist/out" scripts/dist.sh "$binary" >/dev/null
  (cd "$dist/out" && sha256sum --quiet -c SHA256SUMS) || fail 'SHA256SUMS'
  mv "$dist"/out/*.deb "$dist/cooper.deb"
  # The same as a later version.
  dpkg-deb -R "$dist/cooper.deb" "$dist/next"
  sed -i 's/^\(Version: .*\)/\1+next/' "$dist/next/DEBIAN/control"
  dpkg-deb -Znone --root-owner-group --build "$dist/next" "$dist/next.deb" >/dev/null
}

# A Debian as on a machine: with systemd as its first process.
machine() {
  local ca="${SSL_CERT_FILE:-/dev/null}"
  docker build -q -t "$image" --secret "id=ca,src=$ca" - >/dev/null <<'END'
FROM debian:bookworm-slim
RUN --mount=type=secret,id=ca,target=/run/secrets/ca \
    if [ -s /run/secrets/ca ]; then echo 'Acquire::https::CAInfo "/run/secrets/ca";' >/etc/apt/apt.conf.d/ca; fi && \
    apt-get -qq update && \
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends systemd systemd-sysv dbus python3 ca-certificates >/dev/null && \
    rm -rf /var/lib/apt/lists/* /etc/apt/apt.conf.d/ca
CMD ["/sbin/init"]
END
  docker run -d --privileged --cgroupns private --tmpfs /run --tmpfs /run/lock -v /var/lib --name "$container" "$image" >/dev/null
  docker cp -q "$dist/cooper.deb" "$container:/cooper.deb"
  docker cp -q "$dist/next.deb" "$container:/next.deb"
  within 30 'systemd runs' inside sh -c 'systemctl is-system-running | grep -E "running|degraded"'
}

installs() {
  inside dpkg -i /cooper.deb >/dev/null || fail 'dpkg -i'
  same 'its user is there' cooper "$(inside id -un cooper)"
  same 'its units are known' 'disabled disabled' "$(inside systemctl is-enabled cooper-coordinator cooper-worker | xargs)"
  inside systemd-analyze --man=no verify cooper-coordinator.service cooper-worker.service || fail 'units that systemd finds fault with'
  ok 'systemd finds no fault with them'
}

# As docs/operations.md says.
starts() {
  inside systemctl enable --now cooper-coordinator
  within 10 'the coordinator serves' cooper health
  inside sh -c 'umask 077; printf "COORDINATOR_ADDR=127.0.0.1:50051\nCOOPER_JOIN_TOKEN_FILE=/var/lib/cooper/worker.token\n" >/etc/default/cooper-worker'
  inside systemctl enable --now cooper-worker
  within 20 'the worker is ready' sh -c "docker exec -e COOPER_DATA=/var/lib/cooper $container cooper workers | grep -q ready"
  # shellcheck disable=SC2016 # a shell in the container expands it
  same 'the coordinator runs as its user' cooper "$(inside sh -c 'stat -c %U "/proc/$(systemctl show -P MainPID cooper-coordinator)"')"
  printf '      tier %s\n' "$(cooper workers | grep -oE 'T[0-4]' | head -n 1)"
  cooper session create --name kept >/dev/null
  cooper exec kept -c 'x = 41; open("kept.txt", "w").write("kept")' >/dev/null
  same 'code runs' 42 "$(cooper exec kept -c 'x + 1')"
}

outlives() {
  inside systemctl kill --kill-who=main -s KILL cooper-coordinator
  within 15 'the coordinator is started again' cooper health
  within 20 'its session has its variables still' sh -c "docker exec -e COOPER_DATA=/var/lib/cooper $container cooper exec kept -c 'x + 1' | grep -q 42"
  inside dpkg -i /next.deb >/dev/null || fail 'the upgrade'
  inside systemctl restart cooper-coordinator cooper-worker
  within 20 'the upgraded coordinator serves' cooper health
  within 30 'its session has its files still' sh -c "docker exec -e COOPER_DATA=/var/lib/cooper $container cooper exec kept -c 'print(open(\"kept.txt\").read())' | grep -q kept"
  same 'the package is the later one' 1 "$(inside sh -c "dpkg-query -W cooper | grep -c +next")"
}

removes() {
  inside dpkg -P cooper >/dev/null 2>&1 || fail 'dpkg -P'
  within 15 'a removal stops both' sh -c "! docker exec $container pgrep -x cooper"
  inside test -s /var/lib/cooper/cooper.db || fail 'the data is gone'
  ok 'and leaves the data'
}

main() {
  trap 'status=$?; docker rm -fv "$container" >/dev/null 2>&1; exit $status' EXIT
  packages
  machine
  installs
  starts
  outlives
  removes
  printf '%s: %d checks passed in %d s\n' "$(basename "$0")" "$checks" "$SECONDS"
}

main "$@"
