# SPDX-License-Identifier: GPL-2.0-only
"""The web service of docs/tour.md: a shop that sends product pages and their pictures.

It keeps all pictures in memory, though its visitors look at few of them: ``--pictures mapped`` maps the file instead.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import kdamon

PRODUCTS = 16384
PICTURE = 16 << 10


def pictures(file: Path, how: str) -> mmap.mmap:
    """All pictures, one after the other: a copy in memory, or the mapped file."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    if how == "mapped":
        return mapped
    copy = mmap.mmap(-1, len(mapped), flags=mmap.MAP_PRIVATE)
    copy[:] = mapped[:]
    mapped.close()
    kdamon.kdamon_name(ctypes.addressof(ctypes.c_char.from_buffer(copy)), len(copy), "pictures")
    return copy


class Shop(BaseHTTPRequestHandler):
    """Answers /product/N and /picture/N."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    products: list[dict[str, object]]
    pictures: mmap.mmap

    def do_GET(self) -> None:
        """Send what is asked for."""
        what, number = self.path.strip("/").split("/")
        if what == "picture":
            self._send("image/jpeg", self.pictures[int(number) * PICTURE : (int(number) + 1) * PICTURE])
        else:
            product = self.products[int(number)]
            page = "<h1>{name}</h1><p>{text}</p><p>{price} EUR</p>".format(**product)
            self._send("text/html", page.encode())

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="all pictures, 16 KiB each")
    parser.add_argument("--pictures", choices=("copied", "mapped"), default="copied")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    Shop.products = [
        {"name": f"product {n}", "text": f"{n} " * (1000 // len(f"{n} ")), "price": n / 100} for n in range(PRODUCTS)
    ]
    Shop.pictures = pictures(args.file, args.pictures)
    with HTTPServer(("127.0.0.1", args.port), Shop) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
