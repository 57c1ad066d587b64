#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Process 1 of the guest: mount what a Debian system has, run the command in the sources, and hand the results back.
#
# Disks: vda the root, vdb the job (this script, the command and the sources), vdc the kernel's modules, vdd swap.
export PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 TERM=dumb
export PYTHONUNBUFFERED=1 PYTHONPATH=/job/source:/job/source/fs:/job/source/tools
export RESULTS=/results

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /usr/lib/modules /dev/pts /dev/shm /results
mount -t ext4 -o ro /dev/vdc /usr/lib/modules
# /tmp stays on the disk: memory of files that tests map is to be that of a disk.
mount -t tmpfs tmpfs /run
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
ln -sf /proc/self/fd /dev/fd
ip link set lo up
hostname kernels
modprobe -qa fuse zram
swapon /dev/vdd

# port NAME: the device of a virtio port.
port() {
    for each in /sys/class/virtio-ports/*; do
        [ "$(cat "$each/name")" = "$1" ] && echo "/dev/${each##*/}" && return
    done
}

cd /job/source || exit
# Python's compiled files of the last run; it compiles slowly here.
[ -e /job/compiled.tar ] && tar -C /job -xf /job/compiled.tar
# A session of its own, as a shell's: some tests send signals to process groups. Interrupted before the guest is stopped.
left=$(($(cat /job/limit) - $(cut -d. -f1 /proc/uptime)))
setsid --wait timeout --signal=INT --kill-after=30 "$left" bash /job/command </dev/null >"$(port output)" 2>&1
echo $? >/results/status
dmesg >/results/dmesg
cd /job && find source -name '*.pyc' -print0 | tar --null --files-from - -cf /results/compiled.tar
tar -C /results -cf "$(port results)" .
echo o >/proc/sysrq-trigger
sleep 60
