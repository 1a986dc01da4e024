#!/usr/bin/env bash
# Sets up and starts a pool of one host, with a demo tenant and instance. Running it again is harmless.
# ATOLL_BIN names a folder with atoll and atolld built elsewhere; then this host needs no Go.
set -euo pipefail
cd "$(dirname "$0")/.."
row() { printf '  %-10s %-70s %s\n' "$1" "$2" "$3"; }
fail() { printf 'error: %s\n' "$1" >&2; [ -n "${2:-}" ] && printf '  what would help: %s\n' "$2" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "make up needs root: it installs packages and makes namespaces" "sudo make up"
bin=${ATOLL_BIN:-bin}
if [ -z "${ATOLL_BIN:-}" ]; then
  command -v go >/dev/null || fail "Go is not installed" "https://go.dev/dl (version 1.26 or later), or ATOLL_BIN=folder with atoll and atolld"
elif [ ! -x "$bin/atoll" ] || [ ! -x "$bin/atolld" ]; then
  fail "ATOLL_BIN=$bin has no atoll and atolld"
fi

row packages "$(deploy/packages.sh)" ok
if [ -z "${ATOLL_BIN:-}" ]; then
  make -s build
  row build "bin/atoll bin/atolld bin/atoll-init bin/atoll-watchdog" ok
else
  row build "$bin/atoll $bin/atolld" "built before"
fi
for b in atoll atolld atoll-watchdog; do
  [ -e "$bin/$b" ] || continue # of ATOLL_BIN: atolld is its own watchdog where there is none
  # A running binary cannot be overwritten, but it can be replaced.
  cmp -s "$bin/$b" "/usr/local/bin/$b" || { cp "$bin/$b" "/usr/local/bin/.$b.new" && mv "/usr/local/bin/.$b.new" "/usr/local/bin/$b"; }
done

ready() { atoll get nodes -o name 2>/dev/null | grep -q .; }
now() { date +%s%3N; }
started=""
t0=$(now)
if [ -d /run/systemd/system ]; then
  install -m 644 deploy/atolld.service deploy/atoll-shutdown.service /etc/systemd/system/
  systemctl daemon-reload
  systemctl enable -q atolld atoll-shutdown
  systemctl restart atolld
  systemctl start --no-block atoll-shutdown # waits for the daemon by itself
  where="systemd unit atolld (journalctl -u atolld)"
  started=yes
else
  mkdir -p /var/log/atoll /run/atoll
  old=$(cat /run/atoll/atolld.pid 2>/dev/null || true)
  exe=$(readlink "/proc/$old/exe" 2>/dev/null || true)
  if [ -n "$old" ] && [ "$(basename "${exe% (deleted)}")" = atolld ]; then
    if [ "$exe" != /usr/local/bin/atolld ]; then
      # The binary was replaced, or an upgrade has chosen another one: the installed one
      # begins and chooses again. Instances run on meanwhile.
      kill "$old"
      for _ in $(seq 200); do kill -0 "$old" 2>/dev/null || break; sleep 0.05; done
      old=""
    fi
  else
    old=""
  fi
  if [ -z "$old" ]; then
    t0=$(now)
    setsid nohup /usr/local/bin/atolld up >>/var/log/atoll/atolld.log 2>&1 </dev/null &
    started=yes
  fi
fi
for _ in $(seq 600); do ready && break; sleep 0.02; done
took=$(( $(now) - t0 ))
if ! ready; then
  [ -d /run/systemd/system ] && journalctl -u atolld -n 20 --no-pager >&2 || tail -n 20 /var/log/atoll/atolld.log >&2
  fail "atolld did not become ready" "atolld doctor"
fi
[ -n "${where:-}" ] || where="pid $(cat /run/atoll/atolld.pid), log /var/log/atoll/atolld.log"
if [ -n "$started" ]; then row start "atolld up  ($where)" "ready in $(awk "BEGIN{printf \"%.2f\", $took/1000}") s"
else row start "atolld up  ($where)" "runs already"; fi

if ! atoll get tenant/demo -o name >/dev/null 2>&1; then
  atoll tenant create demo --guarantee cpu=500m,memory=512Mi --limit cpu=2 >/dev/null
fi
row tenant "demo   guarantee cpu 500m memory 512Mi   limit cpu 2" ok

port=""
if atoll get instance/web --tenant demo -o name >/dev/null 2>&1; then
  note="runs already"
else
  for p in $(seq 8080 8099); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then port=$p; break; fi
  done
  [ -n "$port" ] || fail "the ports 8080 to 8099 are all in use on this host"
  t1=$(now)
  atoll run -d --tenant demo --stop-timeout 1s --name web --cpu 250m --memory 64Mi --limit cpu=250m,memory=64Mi \
    -p "127.0.0.1:$port:80" --health-http 80/ busybox httpd -f -p 80 -h /var/www >/dev/null
  note="running in $(( $(now) - t1 )) ms"
fi
json=$(atoll get instance/web --tenant demo -o json)
addr=$(sed -n 's/.*"address": *"\([0-9.]*\)".*/\1/p' <<<"$json" | head -n 1)
port=$(sed -n 's/.*"publish": *\([0-9]*\).*/\1/p' <<<"$json" | head -n 1)
row instance "demo/web  container  $addr  published 127.0.0.1:$port" "$note"

for _ in $(seq 100); do
  status=$(timeout 3 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3" 2>/dev/null | tr -d '\r') || true
  case "$status" in *" 200 "*) ok=yes; break ;; esac
  sleep 0.05
done
[ -n "${ok:-}" ] || fail "http://127.0.0.1:$port/ does not answer" "atoll why instance/web --tenant demo"
row check "GET http://127.0.0.1:$port/" "${status#* }"
# A choice the user made stays, unless that tenant went with the data of an earlier pool.
chosen=$(atoll use 2>/dev/null || true)
[ -n "$chosen" ] && atoll get "tenant/$chosen" -o name >/dev/null 2>&1 || atoll use demo >/dev/null
echo "Atoll is up:"
atoll get nodes | sed 's/^/  /'
echo "Try:  atoll run --rm -it busybox sh     atoll top     atoll why instance/web     make down"
