#!/usr/bin/env bash
# Everything that can be judged without running the product. Each check says what to do.
set -uo pipefail
cd "$(dirname "$0")/.."
bad=0
say() { printf '%-12s %s\n' "$1" "$2"; }
run() { local name=$1; shift; if out=$("$@" 2>&1) && [ -z "${strict:-}${out:+}" ]; then say "$name" ok; else say "$name" FAILED; printf '%s\n' "$out"; bad=1; fi; }
f=$(git ls-files '*.go' | xargs -r gofmt -l)
[ -z "$f" ] && say gofmt ok || { say gofmt "FAILED: gofmt -w $f"; bad=1; }
run vet go vet ./...
run staticcheck go tool staticcheck ./...
run floors go test ./test -run 'TestFloors|TestDoors|TestBinaries|TestFiles|TestPackages|TestNoHidden|TestTheTable|TestLint'
run modules go mod verify
if [ -n "$(git ls-files 'zz_*' '**/zz_*')" ]; then
  # What needs a compiler that is not there is left as it is, and says so: "skipped: …".
  out=$(go generate ./... 2>&1) && git diff --exit-code -- '*zz_*' >/dev/null && say generated ok || { say generated "FAILED: go generate ./... and commit"; printf '%s\n' "$out"; bad=1; }
  grep -h '^skipped:' <<<"$out" | while read -r _ why; do say generated "SKIPPED $why"; done
fi
for s in deploy/*.sh .ci/run; do bash -n "$s" || bad=1; done
exit $bad
