#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# Process 1 of the initramfs: load the driver of the disks and continue on the first of them.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
# QEMU's caller waits for this.
echo "the kernel started"
xz -dc /virtio_blk.ko.xz >/virtio_blk.ko
insmod /virtio_blk.ko
mount -t ext4 /dev/vda /root || poweroff -f
umount /proc
mount --move /dev /root/dev
exec switch_root /root /bin/sh -c '
    mkdir -p /job && tar -xf /dev/vdb -C /job && exec /job/init
    echo "the job cannot be unpacked"; busybox poweroff -f'
