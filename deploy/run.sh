#!/usr/bin/env bash
# Serves the home that is $PRIVYSEAL_HOME, else ~/.privyseal, after the key ceremony when there was none.
set -euo pipefail
cd "$(dirname "$0")/.."
home=$(.venv/bin/python -c 'from privyseal_ca.config import home_directory; print(home_directory(None))')
settings=$home/privyseal.toml

may_listen_on() {
    .venv/bin/python - "$1" <<'PY'
import socket, sys
try:
    socket.create_server(("", int(sys.argv[1]))).close()
except PermissionError:
    sys.exit(1)
except OSError:
    pass  # somebody listens there, and may
PY
}

if [ ! -e "$home/roots.pem" ]; then
    new=true
    [ -e "$settings" ] && new=false
    # Progress only: what the result says, the service says again.
    .venv/bin/privyseal init --home "$home" >/dev/null
    if $new && [ -z "${PRIVYSEAL_VALIDATION__HTTP_PORT:-}" ] && ! may_listen_on 80; then
        cat >>"$settings" <<'TOML'

[validation]
# http-01 belongs on port 80 (RFC 8555 section 8.3), where the user who made this home may not listen: a first certificate
# on this machine would fail. Remove the line to serve clients on other machines.
http_port = 5080
TOML
        echo "run: this user may not listen on port 80, so http-01 asks on port 5080; $settings says more" >&2
    fi
fi
exec .venv/bin/privyseal serve --home "$home"
