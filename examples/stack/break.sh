#!/usr/bin/env bash
# Breaks the copy of the example stack in the current directory, by editing its files only.
#   break.sh NAME    one of the names below
#   break.sh list    the names and what they do
set -euo pipefail

list() {
  cat <<'NAMES'
missing-python-package  web imports yaml, requirements.txt lacks PyYAML: it dies when it starts
missing-apt-package     web's Dockerfile calls jq, which is not installed: its build fails
two-missing-packages    web imports yaml and tabulate, requirements.txt lacks both: one shows behind the other
missing-header          web gains pylibacl, which is compiled and wants sys/acl.h: its build fails
protected               missing-python-package in a service whose repairs need an approval
unexplained             web ends with an error of its own making: there is nothing to go by
unrepairable            missing-python-package, and behind it the error of `unexplained`
NAMES
}

fail() { printf 'break.sh: %s\n' "$*" >&2; exit 1; }

# insert after|before FILE PATTERN TEXT: puts TEXT at the first line that matches PATTERN.
insert() {
  local where="$1" file="$2" pattern="$3" text="$4" new
  ! grep -qF -- "${text%%$'\n'*}" "$file" || fail "$file is already broken this way"
  grep -qE -- "$pattern" "$file" || fail "$file has no line like $pattern; is this an unbroken copy?"
  new="$(where="$where" pattern="$pattern" text="$text" awk '
    !done && $0 ~ ENVIRON["pattern"] {
      done = 1
      if (ENVIRON["where"] == "before") print ENVIRON["text"]
      print
      if (ENVIRON["where"] == "after") print ENVIRON["text"]
      next
    }
    { print }' "$file")"
  printf '%s\n' "$new" >"$file"
}

missing_python_package() {
  insert after web/app.py '^from flask import' 'import yaml'
  insert after web/app.py '^store =' 'settings = yaml.safe_load("greeting: hello")'
}

two_missing_packages() {
  missing_python_package
  insert after web/app.py '^import yaml' 'import tabulate'
}

missing_apt_package() {
  printf '{\n  "greeting": "hello"\n}\n' >web/settings.json
  insert after web/Dockerfile '^COPY app.py' $'COPY settings.json .\nRUN jq --compact-output . settings.json > settings.min.json'
}

missing_header() {
  insert before web/Dockerfile '^COPY requirements.txt' $'RUN apt-get update \\\n && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \\\n && rm -rf /var/lib/apt/lists/*'
  insert after web/requirements.txt '^flask' 'pylibacl==0.7.3'
  insert after web/app.py '^from flask import' 'import posix1e'
}

protected() {
  missing_python_package
  insert after compose.yaml '^    x-cooper:' '      protected: true'
}

unexplained() {
  insert before web/app.py '^    app.run' '    raise SystemExit("ledger is inconsistent")'
}

unrepairable() {
  missing_python_package
  unexplained
}

main() {
  case "${1:-}" in
    list) list; return ;;
    missing-python-package | two-missing-packages | missing-apt-package | missing-header | protected | unexplained | unrepairable) ;;
    *) printf 'usage: break.sh NAME, in a copy of the stack; names:\n%s\n' "$(list)" >&2; exit 2 ;;
  esac
  [[ -f compose.yaml && -f web/app.py && -f web/Dockerfile ]] || fail "no copy of the example stack in $PWD"
  "${1//-/_}"
  echo "broken: $(list | grep "^$1 " | tr -s ' ')"
}

main "$@"
