#!/bin/bash
# Makes what the peers need below DIR, once: venv/ (requirements.txt), layer/ (layer.txt, for Cooper's sessions too) and, where no redis-server is on PATH, redis/:
# the distribution's packages unpacked there, nothing installed, no service started.
set -eu -o pipefail

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

if ! cmp -s "$here/requirements.txt" venv/made-from; then
  rm -rf venv
  "${PYTHON:-python3}" -m venv venv
  venv/bin/pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" venv/made-from
fi

if ! cmp -s "$here/layer.txt" layer.made-from; then
  rm -rf layer
  venv/bin/pip install --quiet --disable-pip-version-check --target layer --requirement "$here/layer.txt"
  chmod -R a+rX layer
  cp "$here/layer.txt" layer.made-from
fi

if ! command -v redis-server >/dev/null && [ ! -x redis/usr/bin/redis-server ]; then
  fetch() { apt-get download redis-server redis-tools libjemalloc2 liblzf1 libatomic1; }
  rm -rf redis && mkdir redis && cd redis
  # Without package lists the first attempt fails; only root can fetch those. The row says so if there is no Redis.
  { fetch || { apt-get update && fetch; }; } >apt.log 2>&1 &&
    for package in *.deb; do dpkg-deb --extract "$package" .; done || true
fi
