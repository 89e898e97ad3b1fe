#!/usr/bin/env bash
# Sets up this checkout: system packages through apt when they are missing, then .venv from the lock files.
#   deploy/setup.sh run    what `privyseal serve` needs
#   deploy/setup.sh demo   certbot besides
#   deploy/setup.sh test   what the tests and linters need besides
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-run}

say() { echo "setup: $*" >&2; }
fail() {
    say "$@"
    exit 1
}

supported() { # command
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# The system's python3, unless it is too old or too new and another one is there.
python=${PYTHON:-python3}
if [ "$python" = python3 ] && command -v python3 >/dev/null 2>&1 && ! supported python3; then
    for candidate in python3.13 python3.12 python3.11; do
        if supported "$candidate"; then
            python=$candidate
            break
        fi
    done
fi

packages=()
want() { # package, test command...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || packages+=("$package")
}
has() { command -v "$1"; }
file() {
    local match
    for match in "$@"; do [ -e "$match" ] && return 0; done
    return 1
}

want softhsm2 file /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/*/libsofthsm2.so
# Debian's python3 comes without ensurepip unless python3-venv is there.
[ -x .venv/bin/pip ] || want "$(basename "$python")-venv" "$python" -c 'import ensurepip'
want openssl has openssl
want curl has curl
if [ "$mode" = test ]; then
    want age has age
    want lego has lego
    want uacme has uacme
    want dehydrated has dehydrated
    want gnutls-bin has gnutls-cli
    want knot file /usr/sbin/knotd
    want postgresql file /usr/lib/postgresql/*/bin/postgres
    want opensc has pkcs11-tool
    # The PKCS#11 module that fails on command, tests/native/pkcs11_shim.c.
    want gcc has cc
    want libc6-dev file /usr/include/stdlib.h
    want libp11-kit-dev file /usr/include/p11-kit-1/p11-kit/pkcs11.h
    want nginx file /usr/sbin/nginx
    want haproxy file /usr/sbin/haproxy
    want socat has socat
    want jq has jq
    want rsyslog file /usr/sbin/rsyslogd
    want rsyslog-openssl file /usr/lib/*/rsyslog/lmnsd_ossl.so /usr/lib64/rsyslog/lmnsd_ossl.so
    want apache2-bin file /usr/lib/apache2/modules/mod_ssl.so
    want golang-go has go
    want golang-golang-x-crypto-dev file /usr/share/gocode/src/golang.org/x/crypto/ocsp
    want golang-golang-x-mod-dev file /usr/share/gocode/src/golang.org/x/mod/sumdb/tlog
    want default-jdk-headless has javac
    # Renewal by mod_md, alert rules and a scrape by Prometheus, reports in a browser.
    want libapache2-mod-md file /usr/lib/apache2/modules/mod_md.so
    want prometheus has promtool
    want chromium has chromium
    want chromium-driver has chromedriver
fi

install_packages() {
    local as_root=()
    command -v apt-get >/dev/null 2>&1 || fail "missing: $*. There is no apt-get here; install them with this" \
        "machine's own package manager and run make again."
    if [ "$(id -u)" != 0 ]; then
        # sudo may ask for a password only where somebody can type it.
        if command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
            as_root=(sudo)
        else
            fail "missing: $*. This user is not root and cannot use sudo; somebody who can has to run:" \
                "apt-get install $*"
        fi
    fi
    say "installing $*"
    # What the tests need are servers that would start at once. Unless this machine has a policy already, it gets one for
    # as long as this takes.
    local policy=/usr/sbin/policy-rc.d
    if [ "$mode" = test ] && [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
        # shellcheck disable=SC2064
        trap "${as_root[*]} rm -f $policy" EXIT
    fi
    # The lists may be old or partly out of reach and the packages there all the same.
    "${as_root[@]}" apt-get update -qq || say "apt-get update failed; going on with the lists that are there"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install: $*. What it says is above."
}

[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"

supported "$python" || fail "Python 3.11 to 3.13 is needed, and $python is" \
    "$("$python" --version 2>&1 || true). Name another one: make run PYTHON=python3.12"
[ -x .venv/bin/pip ] || "$python" -m venv .venv

lock=requirements.lock
[ "$mode" = run ] || lock=requirements-dev.lock
installed=.venv/.$lock
if ! cmp -s "$lock" "$installed"; then
    say "installing the packages of $lock"
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    cp "$lock" "$installed"
fi
# The project itself: two path entries and its command, so that the checkout is what runs.
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n%s\n' "$PWD/ca" "$PWD/acme" >"$site/privyseal.pth"
# A shell line that Python reads as a string: an interpreter line could hold neither a blank nor a long path.
cat >.venv/bin/privyseal <<SCRIPT
#!/bin/sh
'''exec' "$PWD/.venv/bin/python" "\$0" "\$@"
' '''
import sys
from privyseal_acme.cli import main
sys.exit(main())
SCRIPT
chmod +x .venv/bin/privyseal
