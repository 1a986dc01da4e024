#!/usr/bin/env bash
# Installs the OS packages Atoll needs (with --test: and those its tests need), only what is missing.
# With --list it only names those that Atoll needs.
set -euo pipefail
need=(crun conmon nftables iproute2 busybox-static ca-certificates e2fsprogs)
[ "${1:-}" = --list ] && { echo "${need[*]}"; exit; }
[ "${1:-}" = --test ] && need+=(etcd-server iptables runc qemu-system-x86 mmdebstrap debian-archive-keyring coinor-cbc openipmi)
# What tests put themselves beside: other people's programs. Only where nothing has to go for them; their tests are skipped otherwise.
beside=()
if [ "${1:-}" = --test ] && [ "$(id -u)" = 0 ]; then
  command -v dockerd >/dev/null || beside+=(docker.io)
  command -v ufw >/dev/null || beside+=(ufw)
  [ -x /usr/lib/frr/bgpd ] || beside+=(frr)
  command -v bpftool >/dev/null || beside+=(bpftool)
fi
missing=()
for p in "${need[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ] || [ ${#beside[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "error: missing packages: ${missing[*]}" >&2
    echo "  what would help: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  # A service of a package (etcd) must not start by itself: Atoll brings its own.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  log=$(mktemp)
  if [ ${#missing[@]} -gt 0 ] && ! { apt-get install -y --no-install-recommends "${missing[@]}" || { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2; rm -f "$log"
    echo "error: could not install ${missing[*]}" >&2
    exit 1
  fi
  for p in "${beside[@]}"; do
    apt-get install -y --no-install-recommends --no-remove "$p" >"$log" 2>&1 || echo "note: $p cannot be installed beside what is here; the tests that need it are skipped" >&2
  done
  rm -f "$log"
fi
[ "${1:-}" = --test ] || echo "${need[*]}"
