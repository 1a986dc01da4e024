#!/usr/bin/env bash
# Fuzzes every target for the given time.
set -euo pipefail
cd "$(dirname "$0")/.."
for pkg in $(go list ./...); do
  dir=.${pkg#atoll}
  for t in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/func //'); do
    echo "== $pkg $t"
    go test "$pkg" -run '^$' -fuzz "^$t\$" -fuzztime "$1"
  done
done
