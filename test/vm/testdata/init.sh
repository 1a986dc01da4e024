#!/bin/busybox sh
# First process of every guest, in memory: finds the disk, puts the product on it, and
# goes on there with what atoll.init= on the kernel's command line names.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read -r m; do /bin/busybox insmod "/modules/$m" || echo "insmod $m failed"; done </modules/order
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vdb ] && break; /bin/busybox sleep 1; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root && /bin/busybox tar -x -f /dev/vdb -C /root || { echo "no disk"; /bin/busybox poweroff -f; }
init=/sbin/init
for a in $(/bin/busybox cat /proc/cmdline); do case $a in atoll.init=*) init=${a#*=} ;; esac; done
/bin/busybox umount /dev /proc
exec /bin/busybox switch_root /root "$init"
