# SPDX-License-Identifier: GPL-2.0-only
"""A guest of QEMU: it boots, runs one command on a copy of the working tree, and powers off.

Without KVM, so that it works within virtual machines; a guest takes about a tenth of this machine's speed.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.kernels import root
from tests.kernels.commands import output_of
from tests.kernels.releases import Kernel, fetch_kernel

__all__ = ["GuestError", "Options", "Outcome", "pack", "prepare", "run_in_guest", "wait"]

_SWAP: Final = 1 << 30
_BLOCK: Final = 1 << 20
#: Panics end QEMU. The kernel's own DAMON starts only where a test wants it, and huge pages are where a program wants
#: them. NUMA balancing lets pages fault, and moves them, while tests compare what faults and where pages are.
_APPEND: Final = (
    "console=ttyS0 quiet mitigations=off panic=-1 oops=panic damon_stat.enabled=N transparent_hugepage=madvise "
    "numa_balancing=disable"
)


#: Seconds after which a guest whose kernel said nothing is started anew, and how often in all: without KVM a kernel
#: sometimes stands still before its first message.
_BOOT: Final = 120.0
_BOOTS: Final = 3


class GuestError(Exception):
    """The guest ended without a result; the message says how, and where its console is."""


@frozen
class Options:
    """The guest's hardware."""

    cpus: int = 2
    #: MiB, half of it on each of two NUMA nodes.
    memory: int = 3072
    #: Huge TLB pages of 2 MiB to reserve.
    hugepages: int = 64
    #: QEMU's CPU model; ``max,la57=off`` has page tables of four levels.
    cpu: str = "max"
    #: Time passes with the guest's instructions, not with this machine's clock, so that results do not depend on load.
    virtual_time: bool = False
    #: Words for the kernel's command line.
    append: str = ""
    #: Seconds after which the guest is stopped; its command is interrupted at 85 % of it, so that results come.
    timeout: float = 3600


@frozen
class Outcome:
    """What a guest handed back."""

    #: Exit status of the command.
    status: int
    kernel: str
    #: Files that the command left in ``$RESULTS``, and ``dmesg``.
    results: Path


@frozen
class _Disks:
    kernel: Kernel
    root: Path
    modules: Path
    swap: Path


def prepare(release: str, cache: Path) -> _Disks:
    """Make what the cache does not have yet."""
    cache.mkdir(parents=True, exist_ok=True)
    kernel = fetch_kernel(release, cache / release)
    modules = root.modules_image(kernel, cache / f"modules-{release}.ext4")
    return _Disks(kernel, root.root_image(cache), modules, root.swap_image(cache / "swap.img", _SWAP))


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    data = text.encode()
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def pack(source: Path, command: str, limit: int, compiled: Path, archive: Path) -> None:
    """Write the guest's job: the files of a working tree that git does not ignore, as they are, and a command.

    :param limit: seconds from the boot on after which the command is interrupted.
    :param compiled: Python's compiled files of an earlier run; need not exist.
    """
    listed = output_of("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=source)
    with tarfile.open(archive, "w") as tar:
        tar.add(root.GUEST / "init.sh", "init", filter=_owned_by_root)
        _add_text(tar, "command", f"{command}\n")
        _add_text(tar, "limit", f"{limit}\n")
        if compiled.exists():
            tar.add(compiled, "compiled.tar", filter=_owned_by_root)
        for name in filter(None, listed.split("\0")):
            # Deleted, and not yet in the index.
            if (source / name).exists():
                tar.add(source / name, f"source/{name}", recursive=False, filter=_owned_by_root)
    with archive.open("ab") as file:
        file.truncate(-(-file.tell() // _BLOCK) * _BLOCK)


def _qemu(disks: _Disks, options: Options, scratch: Path) -> list[str]:
    words = ["qemu-system-x86_64"]
    if options.virtual_time:
        # 4 ns for each instruction; CPUs take turns.
        words += ["-accel", "tcg,thread=single", "-icount", "shift=2,sleep=off"]
    else:
        words += ["-accel", "tcg,thread=multi"]
    # QEMU 7.2 reads wrong elements for AVX2's gather instructions, by which numpy sorts.
    words += ["-cpu", f"{options.cpu},avx2=off", "-smp", str(options.cpus)]
    words += ["-m", f"{options.memory}M", "-nodefaults", "-display", "none", "-no-reboot"]
    for node in (0, 1):
        words += ["-object", f"memory-backend-ram,id=memory{node},size={options.memory // 2}M"]
        cpus = f"{node * options.cpus // 2}-{(node + 1) * options.cpus // 2 - 1}"
        words += ["-numa", f"node,nodeid={node},memdev=memory{node},cpus={cpus}"]
    huge = f"hugepages={options.hugepages}"
    words += ["-kernel", str(disks.kernel.image), "-initrd", str(scratch / "initramfs")]
    words += ["-append", f"{_APPEND} {huge} {options.append}".strip()]
    for disk in (disks.root, scratch / "job", disks.modules, disks.swap):
        # What the guest writes is lost with it.
        words += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on,cache=unsafe"]
    words += ["-serial", f"file:{scratch / 'console'}", "-device", "virtio-serial-pci"]
    for name, file in (("output", "/dev/fd/1"), ("results", str(scratch / "results.tar"))):
        words += ["-chardev", f"file,id={name},path={file}", "-device", f"virtserialport,chardev={name},name={name}"]
    return words


def wait(words: list[str], timeout: float, stderr: Path, console: Path, boot: float = _BOOT) -> bool:
    """Run QEMU and copy the command's output; return whether it ended in time.

    :param timeout: seconds.
    :param stderr: gets QEMU's messages.
    :param console: where the guest writes as soon as its kernel started.
    :param boot: seconds for that; QEMU is stopped if nothing is there.
    """
    with stderr.open("wb") as errors:
        qemu = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
    in_time = True

    def stop() -> None:
        nonlocal in_time
        in_time = False
        qemu.kill()

    def check() -> None:
        if not console.stat().st_size:
            qemu.kill()

    timers = [threading.Timer(timeout, stop), threading.Timer(boot, check)]
    for timer in timers:
        timer.start()
    try:
        assert qemu.stdout is not None
        while data := qemu.stdout.read(1 << 16):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    finally:
        for timer in timers:
            timer.cancel()
        qemu.kill()
        qemu.wait()
    return in_time


def run_in_guest(disks: _Disks, source: Path, command: str, results: Path, options: Options) -> Outcome:
    """Boot, run a command, and fetch what it leaves in the directory ``$RESULTS``.

    Its output appears on the standard output. It runs as root, by ``bash``, in a copy of the sources, with kdamon on
    Python's path and without a network.

    :param source: the working tree.
    :param results: a directory that is made anew; it gets ``console``, too, the kernel's messages.
    :raises GuestError: there is no result: the kernel panicked, the time was over, QEMU did not start.
    """
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=results.parent) as name:
        scratch = Path(name)
        root.initramfs(disks.kernel, disks.root.parent, scratch / "initramfs")
        compiled = disks.root.with_name("compiled.tar")
        pack(source, command, int(options.timeout * 0.85), compiled, scratch / "job")
        (scratch / "results.tar").touch()
        console = scratch / "console"
        for _ in range(_BOOTS):
            console.touch()
            in_time = wait(_qemu(disks, options, scratch), options.timeout, scratch / "qemu.err", console)
            if console.stat().st_size or not in_time:
                break
        shutil.copy(console, results / "console")
        complaint = (scratch / "qemu.err").read_text(encoding="utf-8").strip()
        try:
            with tarfile.open(scratch / "results.tar") as tar:
                tar.extractall(results, filter="data")
        except tarfile.ReadError:
            reason = complaint or ("it ended by itself" if in_time else f"{options.timeout:g} s were over")
            raise GuestError(
                f"the guest gave no result: {reason}; its console is {results / 'console'}, run again with a longer "
                f"--timeout or report what the kernel says there"
            ) from None
    (results / "compiled.tar").replace(compiled)
    status = int((results / "status").read_text(encoding="ascii"))
    return Outcome(status, disks.kernel.version, results)
