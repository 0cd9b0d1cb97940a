#!/usr/bin/env bash
# Provides the base images that the example stack, the tests and Cooper's own images build on.
#
#   scripts/base-images.sh [image...]      default: debian:bookworm-slim python:3.11-slim; there is rust:1-bookworm, too
#
# An image that is there is left alone; one that is not is pulled. Where no registry answers it is made here:
# Debian by debootstrap from the mirror this machine's apt uses, Python from that with Debian's python3 (3.11) and pip,
# Rust from that with a C compiler and the toolchain of this machine (rustc and cargo of PATH).
# Images made here trust what this machine trusts (the certificate of a TLS proxy, say) and use its apt and pip mirrors.
# They carry the label cooper.made-by, may hold credentials of those mirrors and are not for pushing. To make one
# anew: docker image rm IMAGE, then this script.
#
#   COOPER_DEBIAN_MIRROR   the archive to take Debian from (default: the first main source of this machine's apt)
#   COOPER_PULL_SECONDS    how long a pull may take (default 90)
set -euo pipefail

readonly debian=debian:bookworm-slim python=python:3.11-slim rust=rust:1-bookworm codename=bookworm
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
readonly bundle=/etc/ssl/certs/ca-certificates.crt
readonly make_seconds_max=900

work="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cooper/base-images"

say()  { printf 'base-images: %s\n' "$*"; }
fail() { printf 'base-images: %s\n' "$*" >&2; exit 1; }
have() { docker image inspect "$1" >/dev/null 2>&1; }

# run_logged LOG COMMAND...: quiet when fine, the end of the log when not.
run_logged() {
  local log="$1" status=0; shift
  timeout "$make_seconds_max" "$@" >"$log" 2>&1 || status=$?
  ((status == 0)) || { tail -n 15 "$log" >&2; fail "$1 failed with status $status (log: $log)"; }
}

# The Debian archives of this machine's apt, one "URI SUITE COMPONENTS" a line, with the suite of the release we make.
# Every Debian mirror carries all supported releases, so a machine on another release serves too.
archives() {
  local here
  # shellcheck disable=SC1091
  here="$(. /etc/os-release && [[ "$ID" == debian ]] && echo "$VERSION_CODENAME")" || true
  # shellcheck disable=SC2016 # apt expands these
  [[ -n "$here" ]] && apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
    | awk -v here="$here" -v codename="$codename" '
        $1 ~ /^https?:/ && $3 == "main" && $2 ~ "^" here "([-/](updates|security))?$" && !seen[$1, $2]++ {
          sub(here, codename, $2); print $1, $2, $3
        }'
}

# certificates FILE...: each PEM certificate as one line of base64, so that sets of them can be compared.
certificates() {
  awk '/^-----BEGIN CERTIFICATE-----/ { on = 1; body = ""; next }
       /^-----END CERTIFICATE-----/   { if (on) print body; on = 0 }
       on { gsub(/[ \t\r]/, ""); body = body $0 }' "$@" | sort -u
}

# What this machine trusts beyond the public authorities: its local certificates, and whatever its bundles hold that
# is neither in its own nor in the image's stock set. One line of base64 each.
extra_certificates() {
  local root="$1" trusted=() stock=()
  mapfile -t trusted < <(
    find -L /usr/local/share/ca-certificates -type f -name '*.crt' 2>/dev/null || true
    printf '%s\n' "$bundle" ${SSL_CERT_FILE:+"$SSL_CERT_FILE"} ${NODE_EXTRA_CA_CERTS:+"$NODE_EXTRA_CA_CERTS"} \
      | sort -u | while read -r file; do if [[ -r "$file" ]]; then echo "$file"; fi; done)
  mapfile -t stock < <(find /usr/share/ca-certificates/mozilla "$root/usr/share/ca-certificates" -type f -name '*.crt' 2>/dev/null)
  ((${#trusted[@]})) || return 0
  comm -23 <(certificates "${trusted[@]}") <(certificates "${stock[@]}" </dev/null)
}

# Where pip finds packages, as this machine has it configured: [global] lines for a pip.conf.
pip_settings() {
  { python3 -m pip config list 2>/dev/null || true; } \
    | sed -nE "s/^(:env:|global|user|install)\.(index-url|extra-index-url|proxy|trusted-host)='(.*)'\$/\2 = \3/p" \
    | sed 's/\\n/\n    /g' | awk '!seen[$0]++'
}

# The small files that make a debootstrap tree a good image: like the official one, plus this machine's mirrors.
dress_root() {
  local root="$1" apt="$1/etc/apt" key value pip
  rm -f "$apt/sources.list"
  mkdir -p "$apt/sources.list.d"
  while read -r uri suite components; do
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: %s\n\n' "$uri" "$suite" "$components" "$keyring"
  done <"$work/archives" >"$apt/sources.list.d/debian.sources"
  cat >"$apt/apt.conf.d/docker-image" <<'CONF'
// Lists compressed, no translations, no package kept: layers stay small.
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Apt::AutoRemove::SuggestsImportant "false";
Binary::apt::APT::Keep-Downloaded-Packages "false";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CONF
  for key in Acquire::http::Proxy Acquire::https::Proxy Acquire::Check-Valid-Until Acquire::Check-Date; do
    value="$(apt-config dump --format '%v' --no-empty "$key" 2>/dev/null)"
    [[ -z "$value" ]] || printf '%s "%s";\n' "$key" "$value" >>"$apt/apt.conf.d/host"
  done
  # EXTERNALLY-MANAGED too: an upgraded libpython must not bring it back and break `pip install` in a build.
  printf 'path-exclude %s\n' '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*' \
    '/usr/lib/python3*/EXTERNALLY-MANAGED' >"$root/etc/dpkg/dpkg.cfg.d/docker-image"
  printf 'path-include /usr/share/doc/*/copyright\nforce-unsafe-io\n' >>"$root/etc/dpkg/dpkg.cfg.d/docker-image"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # packages start no daemons in a build
  chmod +x "$root/usr/sbin/policy-rc.d"
  pip="$(pip_settings)"
  [[ -z "$pip" ]] || printf '[global]\n%s\n' "$pip" >"$root/etc/pip.conf"
}

make_debian() {
  local root="$work/root" start=$SECONDS mirror number=0 body changes=()
  ((EUID == 0)) || fail "making $debian needs root (debootstrap); run this as root, or make a registry reachable"
  archives >"$work/archives" || true
  if [[ -n "${COOPER_DEBIAN_MIRROR:-}" ]]; then echo "$COOPER_DEBIAN_MIRROR $codename main" >"$work/archives"; fi
  mirror="$(awk -v suite="$codename" '$2 == suite { print $1; exit }' "$work/archives")"
  [[ -n "$mirror" ]] || fail "no Debian mirror in this machine's apt sources; name one with COOPER_DEBIAN_MIRROR=URL"

  if ! command -v debootstrap >/dev/null || [[ ! -f "$keyring" ]]; then
    command -v apt-get >/dev/null || fail "making $debian needs debootstrap and debian-archive-keyring; install them"
    say "installing debootstrap"
    run_logged "$work/apt.log" sh -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends debootstrap debian-archive-keyring'
  fi

  say "making $debian with debootstrap"
  # A run that was killed may have left /proc and /sys mounted in there.
  umount -l "$root/proc" "$root/sys" 2>/dev/null || true
  rm -rf --one-file-system "$root"
  mkdir -p "$work/debs"
  # ca-certificates, unlike the official image: without it the image could not be given this machine's certificates.
  run_logged "$work/debootstrap.log" debootstrap --variant=minbase --include=ca-certificates --force-check-gpg \
    --keyring="$keyring" --cache-dir="$work/debs" "$codename" "$root" "$mirror"
  dress_root "$root"

  changes=(-c 'CMD ["bash"]' -c 'LABEL cooper.made-by=debootstrap'
           -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin')
  while read -r body; do
    number=$((number + 1))
    { echo '-----BEGIN CERTIFICATE-----'; fold -w 64 <<<"$body"; echo '-----END CERTIFICATE-----'; } \
      >"$root/usr/local/share/ca-certificates/host-$number.crt"
  done < <(extra_certificates "$root")
  if ((number)); then
    run_logged "$work/certificates.log" chroot "$root" update-ca-certificates
    # pip, requests and node bring their own bundles; these make them use the image's.
    changes+=(-c "ENV SSL_CERT_FILE=$bundle PIP_CERT=$bundle REQUESTS_CA_BUNDLE=$bundle NODE_EXTRA_CA_CERTS=$bundle")
  fi

  find "$root/usr/share/doc" -type f ! -name copyright -delete
  tar -C "$root" --one-file-system --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' --exclude='./run/*' \
    --exclude='./tmp/*' --exclude='./var/cache/apt/*.bin' --exclude='./var/cache/apt/archives/*.deb' \
    --exclude='./var/lib/apt/lists/*_*' --exclude='./var/log/*' --exclude='./usr/share/man/*' \
    --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' -c . \
    | docker import "${changes[@]}" - "$debian" >/dev/null
  rm -rf --one-file-system "$root"
  say "made $debian in $((SECONDS - start)) s ($number extra certificates)"
}

make_python() {
  local start=$SECONDS
  provide "$debian"
  say "making $python from $debian"
  # No compiler and no headers, like the official slim image.
  run_logged "$work/python.log" docker build --progress=plain -t "$python" - <<CONF
FROM $debian
ENV LANG=C.UTF-8
RUN apt-get update \\
 && apt-get install -y --no-install-recommends netbase tzdata python3 python3-pip python3-venv \\
 && rm -rf /var/lib/apt/lists/* /var/log/* \\
 && ln -s /usr/bin/python3 /usr/local/bin/python \\
 && find /usr/lib/python3* -name EXTERNALLY-MANAGED -delete
CMD ["python3"]
CONF
  say "made $python in $((SECONDS - start)) s"
}

# What compiles, and nothing else of a toolchain: no documentation, no lints, no sources.
make_rust() {
  local start=$SECONDS sysroot host context
  command -v rustc >/dev/null && command -v cargo >/dev/null ||
    fail "making $rust needs rustc and cargo on this machine; install them, or make a registry reachable"
  provide "$debian"
  say "making $rust from $debian and $(rustc --version)"
  sysroot="$(rustc --print sysroot)" host="$(rustc -vV | sed -n 's/^host: //p')"
  context="$work/rust"
  rm -rf "$context"
  mkdir -p "$context/bin" "$context/lib/rustlib"
  # The cargo of PATH may be a proxy that starts the toolchain's own.
  cp -L "$sysroot/bin/rustc" "$sysroot/bin/cargo" "$context/bin/"
  cp -L "$sysroot"/lib/lib*.so* "$context/lib/"
  cp -rL "$sysroot/lib/rustlib/$host" "$context/lib/rustlib/"
  cat >"$context/Dockerfile" <<CONF
FROM $debian
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:\$PATH
RUN apt-get update \\
 && apt-get install -y --no-install-recommends gcc libc6-dev pkg-config ca-certificates \\
 && rm -rf /var/lib/apt/lists/* /var/log/*
COPY bin /usr/local/cargo/bin
COPY lib /usr/local/cargo/lib
RUN rustc --version && cargo --version
CONF
  run_logged "$work/rust.log" docker build --progress=plain -t "$rust" "$context"
  rm -rf "$context"
  say "made $rust in $((SECONDS - start)) s"
}

provide() {
  local image="$1"
  have "$image" && { say "$image is here"; return; }
  if timeout "${COOPER_PULL_SECONDS:-90}" docker pull -q "$image" >"$work/pull.log" 2>&1; then
    say "pulled $image"
    return
  fi
  case "$image" in
    "$debian") make_debian ;;
    "$python") make_python ;;
    "$rust") make_rust ;;
    *) cat "$work/pull.log" >&2; fail "cannot pull $image, and only $debian, $python and $rust can be made here" ;;
  esac
}

main() {
  (($#)) || set -- "$debian" "$python"
  timeout 15 docker info >/dev/null 2>&1 || fail "no Docker engine answers; run scripts/ensure-engine.sh first"
  mkdir -p "$work"
  # One maker at a time; who waited finds the image.
  exec 9>"$work/lock"
  flock -w "$make_seconds_max" 9 || fail "another call holds $work/lock; see what it waits for"
  for image in "$@"; do provide "$image"; done
}

main "$@"
