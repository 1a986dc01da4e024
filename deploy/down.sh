#!/usr/bin/env bash
# Takes every trace of Atoll off this host: instances, interfaces, rules, cgroups, the daemon.
# The data (/var/lib/atoll) stays unless --data is given.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "error: make down needs root" >&2; exit 1; }
d=$(command -v atolld || true); [ -n "$d" ] || d=bin/atolld
if [ -d /run/systemd/system ] && [ -e /etc/systemd/system/atolld.service ]; then
  systemctl disable -q --now atoll-shutdown || true # the host stays up, so this empties nothing
  systemctl disable -q --now atolld || true
  rm -f /etc/systemd/system/atolld.service /etc/systemd/system/atoll-shutdown.service
  systemctl daemon-reload
fi
pid=$(cat /run/atoll/atolld.pid 2>/dev/null || true)
if [ -n "$pid" ] && readlink "/proc/$pid/exe" 2>/dev/null | grep -q '/atolld'; then
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$pid" 2>/dev/null || break; sleep 0.05; done
  kill -9 "$pid" 2>/dev/null || true
fi
if [ -x "$d" ]; then "$d" down "$@"; fi
rm -f /usr/local/bin/atoll /usr/local/bin/atolld /usr/local/bin/atoll-watchdog
rm -rf /var/log/atoll
