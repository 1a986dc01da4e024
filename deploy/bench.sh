#!/usr/bin/env bash
# Runs one bench; its last line is one JSON object. Without a name: lists them.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${1:-}" ]; then
  echo "usage: make bench NAME=…   one of:"; ls bench | grep -v '\.' | sed 's/^/  /'; exit 2
fi
[ -d "bench/$1" ] || { echo "error: no bench $1; there are: $(cd bench && echo */)" >&2; exit 2; }
exec go run "./bench/$1"
