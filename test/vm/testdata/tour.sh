# The product on this machine: sourced with prefix set to the OCI runtime's name and a slash, and
# tour to long or short.

ready() { atoll get nodes -o name | grep -q .; }
daemon() { setsid atolld up --listen "" >>/var/log/atolld.log 2>&1 </dev/null & }
node() { atoll get nodes -o json; }
mode() { if v2; then echo v2; else echo v1; fi; }

enforced() { # on v2 everything; on v1 the node says what is not
  local n; n=$(node | tr -d '\n ')
  if v2; then grep -qE '"LimitsEnforced","status":true' <<<"$n"
  else grep -qE '"LimitsEnforced","status":false' <<<"$n" && grep -qE '"message":"[^"]*guarantee' <<<"$n"; fi || { echo "$n"; return 1; }
}

works_with() { # the driver's choice of runtime and hierarchy
  local n; n=$(node | tr -d '\n ')
  grep -qF "\"runtime\":\"${prefix%/}\"" <<<"$n" && grep -qF "\"cgroup\":\"$(mode)\"" <<<"$n" && grep -qF '"userns":"idmapped"' <<<"$n" || { echo "$n"; return 1; }
}

terminal() { # the size arrives inside, and so does the exit code
  local seen code
  seen=$(script -qec "stty rows 33 cols 91; atoll exec -it web sh -c 'stty size; exit 5'" /dev/null); code=$?
  [[ $seen == *"33 91"* && $code == 5 ]] || { echo "$seen, code $code"; return 1; }
}

guarantee() {
  v2 || return 0 # which v1 has not, and enforced asks that it is said
  gives 67108864 setting "$(pid_of web)" memory memory.min
}

live_change() {
  local m
  for m in 64 96; do
    printf 'kind: Instance\nmetadata: {name: lim, tenant: demo}\nspec: {image: busybox, command: [sleep, "100000"], networks: [{name: none}], limits: {memory: %sMi, cpu: 500m, pids: 50}}\n' $m >/tmp/lim.yaml
    atoll apply -f /tmp/lim.yaml --wait || return
    soon ceilings lim $((m << 20)) 500 || return
  done
  local pids; pids=$(setting "$(pid_of lim)" pids pids.max)
  [ "$pids" = 50 ] || [ "$pids" = 51 ] || { echo "pids.max $pids"; return 1; } # the supervisor may be in there, too
}

oom() {
  atoll run -d --name hog --restart never --network none --memory-limit 16Mi busybox dd if=/dev/zero of=/dev/null bs=64M count=4 || return
  soon bash -c "atoll get instance/hog -o json | grep -q '\"oomKilled\": *true'"
  gives OOMKilled bash -c "atoll get instance/hog -o json | sed -n 's/.*\"reason\": *\"\(OOMKilled\)\".*/\1/p' | head -n 1"
}

code() { atoll run --rm --network none busybox sh -c 'exit 7'; gives 7 echo $?; }
no_program() { atoll run --rm --network none busybox no-such-program; gives 127 echo $?; }
other_instance() { atoll run --rm busybox wget -q -O - "http://$(instance web | text address)/" | grep -qi html; }
web() {
  atoll run -d --name web --stop-timeout 1s --cpu 250m --memory 64Mi --limit cpu=250m,memory=64Mi \
    -p 127.0.0.1:8080:80 --health-http 80/ busybox httpd -f -p 80 -h /var/www
}
logs() { atoll run -d --name talk --restart never --network none busybox sh -c 'echo one; echo two >&2' && soon bash -c 'atoll logs talk 2>&1 | grep -q two'; }
volume() { atoll run --rm --network none -v data:/d busybox sh -c 'echo kept >/d/f' && gives kept atoll run --rm --network none -v data:/d busybox cat /d/f; }
survives() {
  local pid; pid=$(pid_of web)
  kill -9 "$(cat /run/atoll/atolld.pid)" && sleep 0.5 && [ -d "/proc/$pid" ] || { echo "pid $pid died"; return 1; }
  daemon
  soon ready && gives "$pid" pid_of web && soon page 8080 && gives in atoll exec web echo in
}
delete() {
  atoll delete $(atoll get instances -o name) --now && soon no_instances && return
  atoll get instances # and why something is still there
  ls /run/atoll/container/i /var/lib/atoll/container/i
  find /sys/fs/cgroup -path '*/atoll/*/x*' -name cgroup.procs -exec grep -H . {} +
  return 1
}
down() {
  local d; d=$(cat /run/atoll/atolld.pid)
  kill "$d" && soon bash -c "! kill -0 $d" && atolld down --data && soon nothing && [ ! -e /var/lib/atoll ]
}

daemon
check ready soon ready
check runtime works_with
check tenant bash -c 'atoll tenant create demo --guarantee cpu=500m,memory=256Mi --limit cpu=2 && atoll use demo'
check hello gives hi atoll run --rm --network none busybox echo hi
check network bash -c 'atoll run --rm busybox ip -4 addr show dev eth0 | grep inet'
check exit-code code
check no-such-program no_program
check publish web
check page soon page 8080
check exec gives inside atoll exec web echo inside
check terminal terminal
check ceilings ceilings web 67108864 250
check guarantee guarantee
check enforced soon enforced # with the next report of the node
check oom oom
if [ "$tour" = long ]; then
  check stdin gives 3 bash -c 'printf "a\nb\nc\n" | atoll run --rm -i --network none busybox wc -l'
  check from-another-instance other_instance
  check live-change live_change
  check logs logs
  check volume volume
fi
check survives survives
check delete delete
check down down
