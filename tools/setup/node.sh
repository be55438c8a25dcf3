#!/usr/bin/env bash
# The development chain (anvil) and the API documentation (Swagger UI), by the hashes of the lock; no script of a package is run.
set -euo pipefail
cd "$(dirname "$0")/../.."
echo "setup: Node packages"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
