#!/usr/bin/env bash
# The virtual environment: every package pinned, its hash checked, none built from source.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022

# A half-made environment (an interrupted setup, a moved directory) is made again.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  rm -rf .venv
  "$(tools/setup/find_python.sh)" -m venv .venv
fi
echo "setup: Python packages"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
  -r requirements/dev.txt
.venv/bin/python -m pip check --disable-pip-version-check >/dev/null
# The `goldenlink` command, run from this tree.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
