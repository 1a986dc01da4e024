#!/bin/sh
# Compiles drop.c. Needs clang 14 and the headers of Debian 12 (clang llvm libbpf-dev), so that
# everybody gets the same bytes; where they are missing, what is committed stays as it is.
set -eu
if ! command -v clang-14 >/dev/null || ! command -v llvm-strip-14 >/dev/null || [ ! -e /usr/include/bpf/bpf_helpers.h ]; then
  echo "skipped: eBPF objects need clang-14, llvm-14 and libbpf-dev (apt-get install clang llvm libbpf-dev)" >&2
  exit 0
fi
# The file's own folder is not to be found in the object: it is another one on every machine.
exec go tool bpf2go -go-package uplink -target bpfel -output-stem zz_drop -no-global-types -cc clang-14 -strip llvm-strip-14 drop drop.c -- \
  -O2 -g -mcpu=v3 -Wall -Werror "-I/usr/include/$(uname -m)-linux-gnu" "-ffile-prefix-map=$PWD=." -fdebug-compilation-dir=.
