#!/usr/bin/env bash
# Makes sure that a Docker engine with Compose v2 answers.
#
#   scripts/ensure-engine.sh           use the engine that answers, else set one up and start it
#   scripts/ensure-engine.sh --stop    stop the engine, if this script started it
#
# Where Docker already works this only says so. On Debian 12 as root, whose own docker.io has no Compose v2, it
# unpacks the next release's packages into the cache directory (no package of the system is replaced, and its apt
# sources stay as they are) and starts dockerd in the background on the default socket. Calling it
# again, after a reboot or a kill, starts only the daemon. Everywhere else it says what to install.
set -euo pipefail

readonly host_codename=bookworm next_codename=trixie
readonly packages=(docker.io docker-cli docker-compose docker-buildx containerd tini)
readonly ready_seconds_max=60 stop_seconds_max=30

cache="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cooper"
engine="$cache/engine"       # unpacked packages: engine/root; private apt state: engine/apt
pid_file="$engine/dockerd.pid"
log_file="$engine/dockerd.log"
socket=/var/run/docker.sock

say()  { printf 'engine: %s\n' "$*"; }
fail() { printf 'engine: %s\n' "$*" >&2; exit 1; }

engine_answers()  { timeout 15 docker info >/dev/null 2>&1; }
compose_answers() { [[ "$(timeout 15 docker compose version --short 2>/dev/null)" =~ ^v?([2-9]|[1-9][0-9]) ]]; }

# runs PID NAME: PID is alive and its executable is NAME. A pid alone proves nothing after a reboot.
runs() { [[ -n "$1" && "$(basename -- "$(readlink "/proc/$1/exe" 2>/dev/null)" 2>/dev/null)" == "$2"* ]]; }
pid_in() { cat "$1" 2>/dev/null || true; }

describe() {
  say "Docker $(docker version --format '{{.Server.Version}}') with Compose $(docker compose version --short) ${1:-answers}"
}

# The machine's own sources for its release, with the suite renamed: same mirrors, options and signing keys.
# Other vendors' repositories are left out, they may not carry the next release.
write_sources() {
  local dir="$1" file
  for file in /etc/apt/sources.list.d/*.sources; do
    [[ -f "$file" ]] || continue
    grep -v '^#' "$file" | awk -v RS= -v ORS='\n\n' -v host="$host_codename" -v next_="$next_codename" '
      # One paragraph is one source: rewrite its Suites line if it lists only suites of the host release.
      {
        ours = 0; enabled = 1; main = 0; n = split($0, line, "\n")
        for (i = 1; i <= n; i++) {
          if (line[i] ~ /^Suites:/)     ours = line[i] ~ "^Suites:([ \t]+" host "([-/](updates|security))?)+[ \t]*$"
          if (line[i] ~ /^Components:/) main = line[i] ~ /[ \t]main([ \t]|$)/
          if (line[i] ~ /^Enabled:[ \t]*no/) enabled = 0
        }
        if (!(ours && main && enabled)) next
        for (i = 1; i <= n; i++) {
          if (line[i] ~ /^Suites:/) gsub(host, next_, line[i])
          printf "%s\n", line[i]
        }
        print ""
      }' >>"$dir/next.sources"
  done
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ -f "$file" ]] || continue
    # deb [options] URI SUITE COMPONENTS...
    { grep -E "^deb +(\[[^]]*\] *)?[^ ]+ +$host_codename([-/](updates|security))? +(.* )?main( |$)" <(tr -s '\t ' ' ' <"$file") || true; } \
      | sed -E "s# $host_codename([-/][a-z]+)? # $next_codename\1 #" >>"$dir/next.list"
  done
  [[ -s "$dir/next.sources" || -s "$dir/next.list" ]]
}

# apt as the machine has it (proxy, certificates, credentials), on sources, lists and caches of our own.
private_apt() {
  local apt="$engine/apt"
  "$@" -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$apt/sources.d" -o Dir::Etc::PreferencesParts=- \
    -o Dir::State="$apt/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$apt/cache" \
    -o APT::Sandbox::User=root -o APT::Update::Post-Invoke-Success= -o Acquire::Retries=3
}

unpack() {
  [[ -f "$engine/root/.complete" ]] && return
  local apt="$engine/apt" debs="$engine/debs" deb start=$SECONDS
  rm -rf "$apt" "$debs" "$engine/root"
  mkdir -p "$apt/sources.d" "$apt/state/lists/partial" "$apt/cache/archives/partial" "$debs" "$engine/root"
  write_sources "$apt/sources.d" ||
    fail "found no $host_codename source with component main in /etc/apt; add the Debian mirror there, or install Docker Engine with Compose v2 yourself"
  say "fetching ${packages[*]} of Debian $next_codename"
  if ! (cd "$debs" && private_apt apt-get -qq update && private_apt apt-get -qq download "${packages[@]}") >"$engine/apt.log" 2>&1; then
    tail -n 5 "$engine/apt.log" >&2
    fail "apt could not fetch them (log: $engine/apt.log); check the mirror in /etc/apt, or install Docker Engine with Compose v2 yourself"
  fi
  for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$engine/root"; done
  rm -rf "$debs" "$apt"
  touch "$engine/root/.complete"
  say "unpacked into $engine/root in $((SECONDS - start)) s"
}

# The host release's own runc and iptables fit its libraries; the next release's would not.
install_host_tools() {
  local missing=()
  command -v runc >/dev/null || missing+=(runc)
  command -v iptables >/dev/null || missing+=(iptables)
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}"; } \
    >"$engine/apt.log" 2>&1 || { tail -n 5 "$engine/apt.log" >&2; fail "apt-get install ${missing[*]} failed (log: $engine/apt.log)"; }
}

# Puts the CLI and its plugins where every shell and every user finds them; never replaces what works. Copies, because
# other users cannot follow a link into this one's cache.
install_cli() {
  local plugins=/usr/local/lib/docker/cli-plugins plugin
  if ! command -v docker >/dev/null; then
    install -m 755 "$engine/root/usr/bin/docker" /usr/local/bin/docker
    say "installed /usr/local/bin/docker"
  fi
  for plugin in compose buildx; do
    docker "$plugin" version >/dev/null 2>&1 && continue
    install -D -m 755 "$(find "$engine/root" -path "*/cli-plugins/docker-$plugin" | head -n 1)" "$plugins/docker-$plugin"
    say "installed $plugins/docker-$plugin"
  done
}

start_daemon() {
  local start=$SECONDS pid managed=/var/run/docker/containerd/containerd.pid
  pid="$(pid_in "$pid_file")"
  if ! runs "$pid" dockerd; then
    # dockerd trusts pid files, also its containerd's; after a reboot they may name some other process.
    rm -f "$pid_file"
    runs "$(pid_in "$managed")" containerd || rm -f "$managed"
    # Its own session, no inherited lock or terminal: it outlives the caller. dockerd runs and supervises containerd.
    PATH="$engine/root/usr/sbin:$engine/root/usr/bin:/usr/local/sbin:/usr/sbin:/sbin:$PATH" \
      setsid "$engine/root/usr/sbin/dockerd" --host "unix://$socket" --pidfile "$pid_file" \
      --init-path "$engine/root/usr/bin/tini-static" \
      --userland-proxy-path "$(find "$engine/root/usr" -name docker-proxy | head -n 1)" \
      </dev/null >>"$log_file" 2>&1 9>&- &
    pid=$!
  fi
  until engine_answers; do
    [[ -d "/proc/$pid" ]] || { tail -n 5 "$log_file" >&2; fail "dockerd ended while starting (log: $log_file)"; }
    ((SECONDS - start < ready_seconds_max)) || { tail -n 5 "$log_file" >&2; fail "dockerd did not answer within $ready_seconds_max s (log: $log_file)"; }
    sleep 0.2
  done
  say "dockerd answers on $socket after $((SECONDS - start)) s (pid $(pid_in "$pid_file"), log $log_file)"
}

stop_daemon() {
  local start=$SECONDS pid
  pid="$(pid_in "$pid_file")"
  runs "$pid" dockerd || { say "no engine of ours is running"; return; }
  kill "$pid"
  while [[ -d "/proc/$pid" ]]; do
    ((SECONDS - start < stop_seconds_max)) || fail "dockerd (pid $pid) did not stop within $stop_seconds_max s (log: $log_file)"
    sleep 0.2
  done
  rm -f "$pid_file"
  say "stopped dockerd (pid $pid)"
}

# Ends with what is missing and what to do where this script cannot help.
can_set_up() {
  local found='no Docker engine with Compose v2 answers' remedy='install Docker Engine with Compose v2 for this system and start it'
  if ! engine_answers; then
    [[ -z "${DOCKER_HOST:-}" ]] || fail "the engine at DOCKER_HOST=$DOCKER_HOST does not answer; start it, or unset DOCKER_HOST"
    [[ ! -S "$socket" || -w "$socket" ]] || fail "this user may not use $socket; run as root, or join the group that owns it"
  fi
  # shellcheck disable=SC1091
  [[ -r /etc/os-release ]] && . /etc/os-release
  [[ "${ID:-}" == debian && "${VERSION_CODENAME:-}" == "$host_codename" ]] ||
    fail "$found; setting one up works on Debian 12 only, this is ${PRETTY_NAME:-$(uname -s)}: $remedy"
  ((EUID == 0)) || fail "$found; setting one up needs root: run this script as root, or $remedy"
  # Where a service manager owns the installed engine, starting another one beside it would be wrong.
  if [[ -d /run/systemd/system ]] && ! engine_answers && systemctl is-enabled docker.service >/dev/null 2>&1; then
    fail 'Docker is installed but does not answer: systemctl start docker'
  fi
}

main() {
  local stop=0
  case "${1:-}" in
    '') ;;
    --stop) stop=1 ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac

  if ((!stop)); then
    if engine_answers && compose_answers; then describe; return; fi
    can_set_up
  fi

  # Several callers at once: one works, the others wait for it and then find the engine.
  mkdir -p "$engine"
  exec 9>"$engine/lock"
  flock -w 600 9 || fail "another call holds $engine/lock for 10 minutes; see what it waits for"

  if ((stop)); then stop_daemon; return; fi
  if engine_answers && compose_answers; then describe; return; fi
  unpack
  install_cli
  if ! engine_answers; then
    install_host_tools
    start_daemon
  fi
  compose_answers || fail "docker compose does not work with $(command -v docker); see: docker compose version"
  describe "is ready"
}

main "$@"
