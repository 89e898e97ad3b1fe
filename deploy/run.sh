#!/usr/bin/env bash
# Serves a home, after a key ceremony when there is none. The home is $PRIVYSEAL_HOME, else ~/.privyseal.
set -euo pipefail
cd "$(dirname "$0")/.."
privyseal=$PWD/.venv/bin/privyseal
home=${PRIVYSEAL_HOME:-$HOME/.privyseal}
settings=$home/privyseal.toml

may_answer_http01() {
    .venv/bin/python - <<'PY'
import socket, sys
try:
    socket.create_server(("", 80)).close()
except PermissionError:
    sys.exit(1)
except OSError:
    pass  # somebody else answers there, which is none of our business
PY
}

if [ ! -e "$settings" ]; then
    "$privyseal" init --home "$home"
    if ! may_answer_http01; then
        cat >>"$settings" <<'TOML'
[validation]
# RFC 8555 section 8.3 wants http-01 on port 80, where this user may not listen: a first certificate on this machine would
# fail. Remove the line before clients on other machines are served.
http_port = 5080
TOML
        echo "run: this user may not listen on port 80, so http-01 is asked for on port 5080; $settings says more" >&2
    fi
fi
exec "$privyseal" serve --home "$home"
