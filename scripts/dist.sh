#!/usr/bin/env bash
# What is shipped, in dist/: the stripped binary with shell completions, manual pages and systemd units as a .tar.gz, the
# same as a Debian package, and SHA256SUMS.
#
#   scripts/dist.sh [BINARY]      default: builds target/release/cooper; COOPER_DIST names another directory
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly architectures=(x86_64:amd64 aarch64:arm64) dist="${COOPER_DIST:-dist}"

# field NAME: a text of `cooper --json version`.
field() { sed -nE "s/.*\"$1\": *\"([^\"]*)\".*/\1/p" <<<"$(tr -d '\n' <<<"$about")"; }

# everything ROOT: files as they lie on a machine.
everything() {
  local root="$1" shell
  install -D -m 755 "$binary" "$root/usr/bin/cooper"
  strip "$root/usr/bin/cooper"
  mkdir -p "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" \
    "$root/usr/share/fish/vendor_completions.d" "$root/usr/share/doc/cooper"
  "$binary" man "$root/usr/share/man/man1"
  gzip -9 -n "$root"/usr/share/man/man1/*.1
  "$binary" completions bash >"$root/usr/share/bash-completion/completions/cooper"
  "$binary" completions zsh >"$root/usr/share/zsh/vendor-completions/_cooper"
  "$binary" completions fish >"$root/usr/share/fish/vendor_completions.d/cooper.fish"
  install -D -m 644 -t "$root/usr/lib/systemd/system" deploy/systemd/*.service
  install -m 644 LICENSE "$root/usr/share/doc/cooper/copyright"
  install -m 644 README.md CHANGELOG.md "$root/usr/share/doc/cooper/"
}

package() {
  local root="$1" libc
  mkdir -p "$root/DEBIAN"
  libc="$(dpkg-query -W -f '${Version}' libc6 2>/dev/null | cut -d- -f1)"
  cat >"$root/DEBIAN/control" <<END
Package: cooper
Version: $version
Architecture: $architecture
Maintainer: The Cooper project
Section: admin
Priority: optional
Depends: libc6${libc:+ (>= $libc)}, libgcc-s1
Recommends: python3, ca-certificates
Installed-Size: $(du -sk "$root/usr" | cut -f1)
Description: isolated Python sessions, and repairs of docker compose services
 A self-hosted coordinator with workers: sessions for agents and people to run
 Python in, and diagnosis and repair of the services of a compose stack.
END
  cat >"$root/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ] && ! getent passwd cooper >/dev/null; then
  useradd --system --user-group --home-dir /var/lib/cooper --shell /usr/sbin/nologin cooper
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
END
  # An upgrade restarts nothing: when, and whether sessions go elsewhere before, is for who operates it to say.
  cat >"$root/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now cooper-worker cooper-coordinator || true; fi
END
  cat >"$root/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
END
  chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
  # The last levels take four times as long for a few percent.
  dpkg-deb -z3 --root-owner-group --build "$root" "$dist/cooper_${version}_$architecture.deb" >/dev/null
}

main() {
  local name both
  binary="${1:-}"
  if [[ -z "$binary" ]]; then
    make --no-print-directory build
    binary=target/release/cooper
  fi
  about="$("$binary" --json version)"
  version="$(field version)" architecture=''
  if grep -q failpoints <<<"$about"; then echo 'dist: this binary has failpoints, it is for tests' >&2; exit 1; fi
  for both in "${architectures[@]}"; do
    if [[ "$(field target)" == "${both%%:*}"-* ]]; then architecture="${both##*:}"; fi
  done
  [[ -n "$architecture" ]] || { echo "dist: no packages are made for $(field target)" >&2; exit 1; }
  name="cooper-$version-$(field target)"
  rm -rf "$dist"
  mkdir -p "$dist"
  root="$(mktemp -d)"
  trap 'rm -rf "$root"' EXIT
  everything "$root/$name"
  tar -C "$root" --owner=0 --group=0 --sort=name -czf "$dist/$name.tar.gz" "$name"
  if command -v dpkg-deb >/dev/null; then package "$root/$name"; else echo 'dist: no dpkg-deb here, so no Debian package' >&2; fi
  (cd "$dist" && sha256sum ./* >SHA256SUMS)
  ls -l "$dist"
}

main "$@"
