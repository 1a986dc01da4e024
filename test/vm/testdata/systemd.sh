#!/bin/bash
# What `make up` and `make down` do on a host that systemd runs.
. /opt/atoll/test/lib.sh
cd /opt/atoll || exit
export ATOLL_BIN=/opt/atoll/bin ATOLL_TENANT=demo

show() { systemctl show -p "$1" --value atolld; }
port() { instance web | number publish; }
ready() { atoll get nodes -o name | grep -q .; }

restart() { # the daemon is a new process; the instance is not
  local pid main; pid=$(pid_of web); main=$(show MainPID)
  systemctl restart atolld && soon ready || return
  [ "$(show MainPID)" != "$main" ] && gives "$pid" pid_of web && soon page "$(port)"
}

killed() { # systemd starts it again, and the instance lives
  local pid main; pid=$(pid_of web); main=$(show MainPID)
  kill -9 "$main" && soon bash -c "m=\$(systemctl show -p MainPID --value atolld); [ \$m != 0 ] && [ \$m != $main ]" || return
  [ -d "/proc/$pid" ] || { echo "pid $pid died with the daemon"; return 1; }
  soon ready && gives "$pid" pid_of web && gives in atoll exec web echo in
}

outside() { # neither instance nor supervisor is in the unit's group, which systemd may end
  local g; g=$(cat /sys/fs/cgroup"$(show ControlGroup)"/cgroup.procs)
  gives "$(show MainPID)" echo "$g"
}

makes_no_difference() { # a second `make up`
  local pid; pid=$(pid_of web)
  make up && gives "$pid" pid_of web && systemctl is-active -q atolld
}

other_units() { # the controllers that Atoll asked for are still there after a reload of systemd
  systemctl daemon-reload && grep -qw memory /sys/fs/cgroup/atoll/cgroup.subtree_control && ceilings web 67108864 250
}

no_unit() {
  local s; s=$(systemctl show -p LoadState --value atolld)
  [ "$s" = not-found ] || { echo "unit atolld is $s"; return 1; }
  none files find /etc/systemd /usr/local/bin -name '*atoll*' -not -name 'atoll-tour*'
}

check system soon bash -c 's=$(systemctl is-system-running); [ "$s" = running ] || [ "$s" = starting ] || { systemctl --failed; exit 1; }'
check up make up
check active gives active systemctl is-active atolld
check enabled gives enabled systemctl is-enabled atolld
check shutdown-unit soon gives active systemctl is-active atoll-shutdown
check page soon page "$(port)"
check alone-in-its-group outside
check ceilings ceilings web 67108864 250
check guarantee gives 67108864 setting "$(pid_of web)" memory memory.min
check up-again makes_no_difference
check restart restart
check killed killed
check ceilings-after ceilings web 67108864 250
check reload other_units
check hello gives hi atoll run --rm busybox echo hi
check page-at-the-end soon page "$(port)"
check down make down
check no-unit no_unit
check nothing-left soon nothing
check data-kept test -d /var/lib/atoll/etcd
check up-on-old-data make up
check down-with-data make down DATA=1
check nothing-left-at-all soon nothing
check no-data test ! -e /var/lib/atoll
journalctl -u atolld --no-pager -n 60
say done
systemctl poweroff
