#!/usr/bin/env bash
# The development chain: anvil's binary from its npm package, by the lock's hashes; no script of a package is run.
set -euo pipefail
cd "$(dirname "$0")/../.."
echo "setup: Node packages"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
