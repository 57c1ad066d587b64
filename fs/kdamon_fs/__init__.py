# SPDX-License-Identifier: GPL-2.0-only
"""The directory tree of ``/sys/kernel/mm/damon``, served from user space.

:mod:`kdamon_fs.kobject` is sysfs itself, :mod:`kdamon_fs.sysfs`, :mod:`kdamon_fs.sysfs_schemes` and
:mod:`kdamon_fs.sysfs_common` are the kernel's files of these names; all of them work without a mount.
:mod:`kdamon_fs.mount` puts a tree into the file system, :mod:`kdamon_fs.namespace` runs a command that sees it at the
kernel's place.
"""

__all__: list[str] = []
