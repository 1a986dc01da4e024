#!/usr/bin/env bash
# Installs the OS packages Atoll needs (with --test: and those its tests need), only what is missing.
# With --list it only names those that Atoll needs.
set -euo pipefail
need=(crun conmon nftables iproute2 busybox-static ca-certificates e2fsprogs)
[ "${1:-}" = --list ] && { echo "${need[*]}"; exit; }
[ "${1:-}" = --test ] && need+=(etcd-server iptables runc qemu-system-x86 mmdebstrap debian-archive-keyring coinor-cbc openipmi frr docker.io ufw bpftool)
missing=()
for p in "${need[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
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
  if ! { apt-get install -y --no-install-recommends "${missing[@]}" || { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2; rm -f "$log"
    echo "error: could not install ${missing[*]}" >&2
    exit 1
  fi
  rm -f "$log"
fi
[ "${1:-}" = --test ] || echo "${need[*]}"
