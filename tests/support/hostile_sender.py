# SPDX-License-Identifier: GPL-2.0-only
"""A user who sends kdamon what takes an hour to close; it says what came of that, and ends when its input does.

``hostile_sender.py SOCKET HOW``: the last close of a TCP socket with unsent data waits as long as SO_LINGER says.
"""

import encodings.idna  # noqa: F401 (a host's name needs it, and this user cannot read it)
import os
import socket
import struct
import sys

NOBODY = 65534
HOUR = struct.pack("ii", 1, 3600)
HELLO = struct.pack("<QII", int.from_bytes(b"kdamonRR", "little"), 1, 0)


def slow_to_close() -> tuple[socket.socket, list[socket.socket]]:
    """A TCP socket with more than its peer takes, and what keeps it so."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    ours = socket.socket()
    ours.connect(listener.getsockname())
    peer, _ = listener.accept()
    ours.setblocking(False)
    try:
        while True:
            ours.send(b"x" * 65536)
    except BlockingIOError:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HOUR)
    return ours, [listener, peer]


def attack(path: str, how: str) -> None:
    """Send it, and print 0 or an errno."""
    kept = []
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    slow, beside = slow_to_close()
    kept += beside
    fds = [slow.fileno()] * (253 if how == "many" else 1)
    try:
        if how in ("second", "third", "queued"):
            for _ in range(40 if how == "queued" else 2 if how == "third" else 1):
                connection.send(HELLO)
        socket.send_fds(connection, [b"" if how == "empty" else HELLO], fds)
    except OSError as error:
        print(error.errno, flush=True)
    else:
        # The one that was sent is the last one.
        slow.close()
        if how == "hangup":
            connection.close()
        print(0, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    attack(sys.argv[1], sys.argv[2])
