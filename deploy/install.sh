#!/bin/sh
# Installs Atoll from a server of the pool and joins it. The server gives this script,
# with the packages and the service file of its own version. To be run as root:
#   curl -fsSk --pinnedpubkey PIN URL/install | ATOLLD_TOKEN=… sh -s -- URL [flags of atolld join]
# Running it again is harmless.
set -eu
umask 022
pin='@PIN@'
bin=/usr/local/bin

row() { printf '  %-10s %-60s %s\n' "$1" "$2" "$3"; }
fail() {
  printf 'error: %s\n' "$1" >&2
  [ -z "${2:-}" ] || printf '  what would help: %s\n' "$2" >&2
  exit 1
}

packages() {
  cat <<'END_OF_FILE'
@PACKAGES@
END_OF_FILE
}

unit() {
  cat <<'END_OF_FILE'
@UNIT@
END_OF_FILE
}

# fetch NAME: the program from the server, as a whole or not at all.
fetch() {
  code=$(curl -sSk ${pin:+--pinnedpubkey "$pin"} --retry 3 -o "$tmp/$1" -w '%{http_code}' "$url/install/linux/$arch/$1") ||
    fail "could not fetch $1 from $url" "is it the server the line was made for? make a new one: atoll node token"
  case $code in
    200) return 0 ;;
    404) return 1 ;;
  esac
  fail "$url does not give $1: $(cat "$tmp/$1")"
}

# put NAME: a running program cannot be overwritten, but it can be replaced.
put() {
  if ! cmp -s "$tmp/$1" "$bin/$1"; then
    cp "$tmp/$1" "$bin/.$1.new"
    chmod 755 "$bin/.$1.new"
    mv "$bin/.$1.new" "$bin/$1"
  fi
}

need_packages() {
  if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null && command -v bash >/dev/null; then
    packages >"$tmp/packages.sh"
    row packages "$(bash "$tmp/packages.sh")" ok
    return
  fi
  missing=""
  for c in conmon nft ip; do
    command -v "$c" >/dev/null || missing="$missing $c"
  done
  command -v crun >/dev/null || command -v runc >/dev/null || missing="$missing crun"
  [ -z "$missing" ] || fail "this host has no apt-get, and these commands are missing:$missing" "install them with what this system has, and run this again"
  row packages "found" ok
}

begin() {
  if [ -d /run/systemd/system ]; then
    unit >/etc/systemd/system/atolld.service
    chmod 644 /etc/systemd/system/atolld.service
    systemctl daemon-reload
    systemctl enable -q atolld
    systemctl restart atolld
    row start "systemd unit atolld (journalctl -u atolld)" ok
    return
  fi
  mkdir -p /var/log/atoll /run/atoll
  old=$(cat /run/atoll/atolld.pid 2>/dev/null || true)
  if [ -n "$old" ] && readlink "/proc/$old/exe" 2>/dev/null | grep -q '/atolld\( (deleted)\)\{0,1\}$'; then
    # It takes up what changed; instances run on meanwhile.
    kill "$old" 2>/dev/null || true
    i=0
    while kill -0 "$old" 2>/dev/null && [ "$i" -lt 100 ]; do
      sleep 0.1
      i=$((i + 1))
    done
  fi
  setsid nohup "$bin/atolld" up >>/var/log/atoll/atolld.log 2>&1 </dev/null &
  row start "atolld up (log /var/log/atoll/atolld.log)" ok
}

main() {
  [ "$(id -u)" = 0 ] || fail "installing needs root" "… | sudo ATOLLD_TOKEN=… sh -s -- URL"
  url=${1:-}
  case $url in
    https://*) ;;
    *) fail "which server? the first argument must be its URL" "sh -s -- https://isle1:7443" ;;
  esac
  command -v curl >/dev/null || fail "curl is missing" "apt-get install curl"
  [ "$(uname -s)" = Linux ] || fail "Atoll runs on Linux, not on $(uname -s)"
  case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64 | arm64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
  esac
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  for b in atolld atoll; do
    fetch "$b" || fail "$url has no $b"
  done
  extra=""
  for b in atoll-init atoll-watchdog; do
    if fetch "$b"; then extra="$extra $b"; fi
  done
  need_packages
  for b in atolld atoll $extra; do put "$b"; done
  row programs "$bin: atolld atoll$extra" ok
  "$bin/atolld" join "$@" </dev/null
  unset ATOLLD_TOKEN # the daemon does not need it
  begin
}

# In a function, so that a script that arrived in part does nothing.
main "$@"
