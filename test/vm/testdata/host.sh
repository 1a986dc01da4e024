#!/bin/bash
# First process of a host without a service manager: mounts what hosts have, runs the
# long tour with crun and then, crun removed, one with runc (the long one where the kernel's command
# line says atoll.runc=long), and switches off.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
ln -sfn /proc/self/fd /dev/fd
. /opt/atoll/test/lib.sh
if grep -q cgroup_no_v1=all /proc/cmdline; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
  for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
    mkdir "/sys/fs/cgroup/$c" && mount -t cgroup -o $c $c /sys/fs/cgroup/$c
  done
  mkdir /sys/fs/cgroup/systemd && mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd
fi
modprobe loop
ip link set lo up
hostname isle1
cp /opt/atoll/bin/atoll /opt/atoll/bin/atolld /usr/local/bin/
prefix=crun/ tour=long
. /opt/atoll/test/tour.sh
rm /usr/bin/crun
prefix=runc/ tour=short
grep -q atoll.runc=long /proc/cmdline && tour=long
. /opt/atoll/test/tour.sh
tail -n 40 /var/log/atolld.log
say done
exec busybox poweroff -f
