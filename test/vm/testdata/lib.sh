# Shared by the tours: every check is a line on the second serial port, "ok NAME" or
# "not ok NAME: what was seen".
out=/dev/ttyS1
prefix=""
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

say() { echo "$1" >$out; echo "$SECONDS s: $1"; }

# check NAME COMMAND…: the command must succeed, within minutes. After some failures the rest is not
# tried: each might wait for what will not come.
failures=0
check() {
  local name=$prefix$1 p watchdog; shift
  [ $failures -lt 4 ] || { say "not ok $name: not tried"; return; }
  "$@" >/tmp/seen 2>&1 </dev/null & p=$!
  { sleep 300; hangs >>/tmp/seen; kill -9 $p; } >/dev/null 2>&1 & watchdog=$!
  wait $p; local code=$?
  kill $watchdog; wait $watchdog 2>/dev/null
  if [ $code = 0 ]; then say "ok $name"; return; fi
  failures=$((failures + 1))
  say "not ok $name: $(tr -c '[:print:]' ' ' </tmp/seen | tail -c 2500)"
}

# hangs tells what everybody is waiting for.
hangs() {
  local p
  echo "hangs:"
  for p in /proc/[0-9]*; do
    [ -s "$p/cmdline" ] && echo "${p#/proc/} $(tr '\0' ' ' <"$p/cmdline" | cut -c 1-60) in $(cat "$p/wchan"); "
  done
}

# gives WANT COMMAND…: the command prints exactly that.
gives() {
  local want=$1 got; shift
  got=$("$@"); local code=$?
  [ "$got" = "$want" ] && return
  echo "wanted \"$want\", got \"$got\", code $code"; return 1
}

# soon COMMAND…: it succeeds within minutes, which takes a second unless the machine is busy elsewhere.
soon() {
  local end=$((SECONDS + 150)) seen
  while ! seen=$("$@" 2>&1); do
    [ $SECONDS -lt $end ] || { echo "still not after minutes: $seen"; return 1; }
    sleep 0.3
  done
}

# number FIELD, text FIELD: the first one of that name in JSON.
number() { sed -n "s/.*\"$1\": *\(-\{0,1\}[0-9][0-9]*\).*/\1/p" | head -n 1; }
text() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

instance() { atoll get "instance/$1" -o json; }
pid_of() { instance "$1" | number pid; }
page() { timeout 10 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3" | grep -a '200 OK'; }

v2() { [ -e /sys/fs/cgroup/cgroup.controllers ]; }

# setting PID CONTROLLER FILE: a control file of the group that a process is in.
setting() {
  if v2; then cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/$3"
  else cat "/sys/fs/cgroup/$2$(sed -n "s/^[0-9]*:$2://p" "/proc/$1/cgroup")/$3"; fi
}

# ceilings NAME MEMORY CPUS: what the kernel holds an instance to; CPUs in thousandths.
ceilings() {
  local pid; pid=$(pid_of "$1")
  if v2; then gives "$2" setting "$pid" memory memory.max && gives "$(($3 * 100)) 100000" setting "$pid" cpu cpu.max
  else gives "$2" setting "$pid" memory memory.limit_in_bytes && gives "$(($3 * 100))" setting "$pid" cpu cpu.cfs_quota_us; fi
}

# none WHAT COMMAND…: the command prints nothing.
none() {
  local what=$1 seen; shift
  seen=$("$@" 2>/dev/null)
  [ -z "$seen" ] || { echo "$what: $seen"; return 1; }
}

# The brackets keep a search from finding itself.
processes() { grep -laE '[a]tolld|conmon[^.]--cid|/run/[a]toll/' /proc/[0-9]*/cmdline; }

no_instances() {
  none groups find /sys/fs/cgroup -type d -path '*/atoll/*' -name 'x*' &&
    none links bash -c "ip -o link | grep -E ': av[0-9a-z]+'" &&
    none supervisors bash -c 'grep -la "conmon[^.]--cid" /proc/[0-9]*/cmdline'
}

nothing() {
  none processes processes && none groups find /sys/fs/cgroup -type d -name 'atoll*' -not -path '*/system.slice/atoll-tour*' &&
    none links bash -c "ip -o link | grep -E 'atoll|: av[0-9a-z]+'" && none rules bash -c 'nft list tables | grep atoll' &&
    none mounts grep atoll /proc/self/mountinfo && none files find /run -maxdepth 1 -name 'atoll*'
}
