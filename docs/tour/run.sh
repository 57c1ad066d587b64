#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Repeat docs/tour.md: in a root shell, with kdamon, its python and chromium on PATH. It takes four minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"; kill %% 2>/dev/null || true' EXIT
cd "$work"
cp "$here/shop.py" "$here/visitors.py" .

show() {
    echo "# $*"
    "$@" 2>&1
    echo
}

head -c 256M /dev/urandom >pictures.bin
for how in copied mapped; do
    python visitors.py --wait --seconds 75 &
    show kdamon record -o "$how.kdamon" --reports shop.sock --quiet --seconds 75 -- \
        python shop.py --file pictures.bin --pictures "$how"
    wait
done
show kdamon report copied.kdamon --time 10-75
show kdamon report copied.kdamon where --time 10-75
show kdamon report copied.kdamon idle --time 10-75
show kdamon report copied.kdamon --time 10-75 -o "$work/copied.html"
show kdamon diff --time 10-75 copied.kdamon mapped.kdamon
show kdamon diff --time 10-75 --fail-if "resident > +5%" mapped.kdamon copied.kdamon | tail -2 || true
# Chromium refuses its sandbox to root.
chromium --headless --no-sandbox --disable-gpu --virtual-time-budget=4000 --window-size=1280,1080 \
    --screenshot="$here/copied.png" "file://$work/copied.html" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
