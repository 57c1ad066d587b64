# SPDX-License-Identifier: GPL-2.0-only
"""The directory tree of ``/sys/kernel/mm/damon``, served from user space.

:mod:`kdamon_fs.kobject` implements sysfs; :mod:`kdamon_fs.sysfs`, :mod:`kdamon_fs.sysfs_schemes` and
:mod:`kdamon_fs.sysfs_common` mirror the kernel's files of these names. None of them needs a mount.
:mod:`kdamon_fs.mount` mounts a tree, :mod:`kdamon_fs.namespace` runs a command that sees it at the kernel's path.
"""

__all__: list[str] = []
