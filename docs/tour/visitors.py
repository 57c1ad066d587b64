# SPDX-License-Identifier: GPL-2.0-only
"""The visitors of the web service of docs/tour.md: some products are popular (Zipf's law), most are not."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import random
import statistics
import time

PRODUCTS = 16384


def main() -> None:
    """Visit as often as was asked for, and print what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--wait", action="store_true", help="until the shop opens; stop when it closes")
    parser.add_argument("--rate", type=float, default=200, help="visits a second")
    args = parser.parse_args()
    chance = random.Random(1)
    popular = chance.sample(range(PRODUCTS), PRODUCTS)
    weights = [1 / (rank + 1) ** 1.2 for rank in range(PRODUCTS)]
    visits = chance.choices(popular, weights, k=int(args.seconds * args.rate))
    connection = http.client.HTTPConnection("127.0.0.1", args.port)
    while args.wait and not _open(connection):
        time.sleep(0.1)
    began = time.monotonic()
    times = []
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        for count, number in enumerate(visits):
            time.sleep(max(0.0, began + count / args.rate - time.monotonic()))
            before = time.monotonic()
            for what in ("product", "picture"):
                connection.request("GET", f"/{what}/{number}")
                connection.getresponse().read()
            times.append(time.monotonic() - before)
    rate = len(times) / (time.monotonic() - began)
    median, slow = statistics.quantiles(times, n=100)[49:99:49]
    print(f"{rate:.0f} visits a second, in {median * 1e3:.1f} ms (median), {slow * 1e3:.1f} ms (99 %)")


def _open(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    return True


if __name__ == "__main__":
    main()
