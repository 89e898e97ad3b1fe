#!/usr/bin/env bash
# Sets up this checkout: system packages through apt when they are missing, then .venv from the lock files.
#   deploy/setup.sh run    what `privyseal serve` needs
#   deploy/setup.sh test   what the tests and linters need besides
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-run}
python=${PYTHON:-python3}

packages=()
want() { # package, test command...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || packages+=("$package")
}
has() { command -v "$1"; }
file() { local match; for match in "$@"; do [ -e "$match" ] && return 0; done; return 1; }

want softhsm2 file /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/softhsm/libsofthsm2.so
# Debian's python3 comes without ensurepip unless python3-venv is there.
[ -x .venv/bin/pip ] || want python3-venv "$python" -c 'import ensurepip'
want openssl has openssl
want curl has curl
if [ "$mode" = test ]; then
    want lego has lego
    want uacme has uacme
    want gnutls-bin has gnutls-cli
    want knot file /usr/sbin/knotd
    want postgresql file /usr/lib/postgresql/*/bin/postgres
    want opensc has pkcs11-tool
fi

if [ ${#packages[@]} -gt 0 ]; then
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        if command -v sudo >/dev/null 2>&1; then
            as_root=(sudo)
        else
            echo "setup: these packages are missing: ${packages[*]}" >&2
            echo "setup: there is neither root nor sudo here; ask somebody who has to run: apt-get install ${packages[*]}" >&2
            exit 1
        fi
    fi
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: these packages are missing: ${packages[*]}" >&2
        echo "setup: this machine has no apt-get; install them with its own package manager and run make again" >&2
        exit 1
    fi
    echo "setup: installing ${packages[*]}" >&2
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

"$python" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"setup: Python 3.11 to 3.13 is needed and this is {sys.version.split()[0]}; name another: make run PYTHON=python3.12")
PY
[ -x .venv/bin/pip ] || "$python" -m venv .venv
lock=requirements.lock
[ "$mode" = test ] && lock=requirements-dev.lock
installed=.venv/.lock-$mode
if ! cmp -s "$lock" "$installed"; then
    echo "setup: installing the packages of $lock" >&2
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    cp "$lock" "$installed"
fi
# The project itself: two path entries and its command, so that the checkout is what runs.
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n%s\n' "$PWD/ca" "$PWD/acme" >"$site/privyseal.pth"
cat >.venv/bin/privyseal <<SCRIPT
#!$PWD/.venv/bin/python
import sys
from privyseal_acme.cli import main
sys.exit(main())
SCRIPT
chmod +x .venv/bin/privyseal
