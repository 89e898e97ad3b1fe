#!/usr/bin/env bash
# Resolves pyproject.toml into two lock files with hashes and without index addresses, for every supported Python.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
.venv/bin/python -m venv "$tools"
"$tools/bin/pip" install --quiet uv
common=(--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header
    --no-annotate --quiet --upgrade)
"$tools/bin/uv" pip compile "${common[@]}" pyproject.toml --output-file requirements.lock
"$tools/bin/uv" pip compile "${common[@]}" --group dev pyproject.toml --constraints requirements.lock --output-file requirements-dev.lock
