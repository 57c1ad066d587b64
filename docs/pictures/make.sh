#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Make the pictures of docs/views.md from a real run: in a root shell, with kdamon, its python and chromium on PATH.
set -euo pipefail
cd "$(dirname "$0")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m kdamon_tools.workloads.stairs --step 2 --seconds 20 >/dev/null &
sleep 1
kdamon record -o "$work/stairs.kdamon" --quiet --seconds 16 --pid $!
wait
kdamon report "$work/stairs.kdamon" -o "$PWD/heatmap.svg"
kdamon report "$work/stairs.kdamon" -o "$work/page.html"
# Chromium refuses its sandbox to root.
chromium --headless --no-sandbox --disable-gpu --virtual-time-budget=4000 --window-size=1280,1080 \
    --screenshot="$PWD/page.png" "file://$work/page.html" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
for view in where idle wss; do
    echo "# kdamon report stairs.kdamon $view"
    kdamon report "$work/stairs.kdamon" "$view"
    echo
done
