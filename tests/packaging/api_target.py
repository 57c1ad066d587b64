# SPDX-License-Identifier: GPL-2.0-only
"""A process to monitor: it writes 8 MiB all the time, and has 64 MiB and a file of 32 MiB that it used once."""

from __future__ import annotations

import mmap
import sys
import tempfile


def main() -> None:
    memory = bytearray(b"x") * (72 << 20)
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(bytes(32 << 20))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 32 << 20, prot=mmap.PROT_READ)
        sum(mapped[page] for page in range(0, len(mapped), 4096))
        print("ready", flush=True)
        while sys.stdout is not None:
            for page in range(0, 8 << 20, 4096):
                memory[page] = page & 255


if __name__ == "__main__":
    main()
