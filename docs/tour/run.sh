#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Repeat docs/tour.md: in a root shell, with kdamon, its python and chromium on PATH. It takes four minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"; kill %% 2>/dev/null || true' EXIT
cd "$work"
cp "$here/shop.py" "$here/visitors.py" .

# Run a command as on a terminal of 96 columns.
show() {
    echo "# $*"
    KDAMON_PAGER=cat NO_COLOR=1 script -qec "stty cols 96 rows 24; $*" /dev/null | tr -d '\r'
    echo
}

head -c 256M /dev/urandom >pictures.bin
for how in copied mapped; do
    python visitors.py --wait --seconds 75 &
    show kdamon record -o "$how.kdamon" --reports=shop.sock --seconds 75 -- \
        python shop.py --file pictures.bin --pictures "$how"
    wait
done
show kdamon report --time 10-75 copied.kdamon
show kdamon report --time 10-75 copied.kdamon where
show kdamon report --time 10-75 copied.kdamon idle
show kdamon report --time 10-75 copied.kdamon -o copied.html
show kdamon diff --time 10-75 copied.kdamon mapped.kdamon
show kdamon diff --time 10-75 --fail-if "'resident > +5%'" mapped.kdamon copied.kdamon "| tail -1"
# Chromium refuses its sandbox to root.
chromium --headless --no-sandbox --disable-gpu --virtual-time-budget=4000 --window-size=1280,1080 \
    --screenshot="$here/copied.png" "file://$work/copied.html" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
