// SPDX-License-Identifier: GPL-2.0-only
// Draws the heatmap, and keeps its time axis and that of the curve (uPlot) the same.
"use strict";
(async () => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const UNKNOWN = 254, ABSENT = 255;
  const canvas = document.getElementById("heat"), map = document.getElementById("map");
  const tip = document.getElementById("tip"), box = document.getElementById("box"), said = document.getElementById("said");
  const context = canvas.getContext("2d");
  const GUTTER = 236, RIGHT = 14, TOP = 6, AXIS = 24, LINE = 15;

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // Levels of the pyramid: shares in percent, one row for each piece.
  const levels = [];
  for (const level of D.levels) levels.push({ columns: level.columns, factor: level.factor, cells: new Uint8Array(await unpack(level.cells)) });
  const ages = new Uint8Array(await unpack(D.ages));
  const sizes = new Float64Array(await unpack(D.sizes));
  const compact = new Float64Array(await unpack(D.compact));
  const curves = [];
  for (const curve of D.curves) curves.push(Array.from(new Float64Array(await unpack(curve.values)), (v) => (Number.isNaN(v) ? null : v)));
  const pieces = sizes.length, columns = D.columns, step = D.seconds / columns;

  function sums(weights) {
    const total = weights.reduce((a, b) => a + b, 0), edges = new Float64Array(pieces + 1);
    for (let i = 0; i < pieces; i++) edges[i + 1] = edges[i] + weights[i] / total;
    edges[pieces] = 1;
    return edges;
  }
  const scales = { compact: sums(compact), bytes: sums(sizes) };
  // Whether nothing is monitored between a piece and the one before.
  const opens = new Uint8Array(pieces + 1), segmentOf = new Int32Array(pieces), within = new Float64Array(pieces);
  D.segments.forEach((segment, number) => {
    let at = 0;
    opens[segment.first] = 1;
    const stop = number + 1 < D.segments.length ? D.segments[number + 1].first : pieces;
    for (let i = segment.first; i < stop; i++) { segmentOf[i] = number; within[i] = at; at += sizes[i]; }
  });

  const view = { t0: 0, t1: D.seconds, y0: 0, y1: 1, scale: "compact" };
  let theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  let pointer = null, crosshair = null, chart = null, lut = null, width = 0, height = 0, syncing = false, asked = 0;

  // ---- words
  function bytes(size) {
    if (size === null) return "unknown";
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = 0;
    while (size >= 1024 && unit < units.length - 1) { size /= 1024; unit++; }
    return (unit ? size.toFixed(1) : size.toFixed(0)) + " " + units[unit];
  }
  function seconds(s, least = 0.1) {
    const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(least))));
    if (Math.abs(s) < 120) return s.toFixed(digits) + " s";
    const whole = Math.round(s);
    if (whole < 7200) return Math.floor(whole / 60) + " min" + (whole % 60 ? " " + (whole % 60) + " s" : "");
    return Math.floor(whole / 3600) + " h" + (whole % 3600 >= 60 ? " " + Math.floor((whole % 3600) / 60) + " min" : "");
  }
  function address(piece, offset = 0) {
    return (BigInt("0x" + D.segments[segmentOf[piece]].start) + BigInt(Math.round(within[piece] + offset))).toString(16);
  }
  function nameOf(piece) {
    const names = D.names[piece];
    return names >= 0 ? D.labels[names] : "";
  }

  // ---- colours
  function rgb(colour) { return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)); }
  function pixel([r, g, b]) { return (255 << 24) | (b << 16) | (g << 8) | r; }
  function paintTheme() {
    const T = D.themes[theme], root = document.documentElement;
    root.dataset.theme = theme;
    for (const key of ["ground", "text", "faint", "rule", "idle"]) root.style.setProperty("--" + key, T[key]);
    T.lines.forEach((colour, number) => root.style.setProperty("--line" + number, colour));
    lut = new Uint32Array(256);
    lut[0] = pixel(rgb(T.idle));
    for (let i = 1; i <= 100; i++) {
      const place = (i / 100) * (T.ramp.length - 1), first = Math.min(Math.floor(place), T.ramp.length - 2);
      const low = rgb(T.ramp[first]), high = rgb(T.ramp[first + 1]);
      lut[i] = pixel(low.map((part, k) => Math.round(part + (place - first) * (high[k] - part))));
    }
    lut[UNKNOWN] = pixel(rgb(T.unknown[0]));
    lut[UNKNOWN - 1] = pixel(rgb(T.unknown[1]));
    lut[ABSENT] = pixel(rgb(T.ground));
    document.getElementById("key-idle").style.background = T.idle;
    document.getElementById("key-ramp").style.background = "linear-gradient(90deg," + T.ramp.join(",") + ")";
    document.getElementById("key-unknown").style.background = `repeating-linear-gradient(135deg,${T.unknown[0]} 0 3px,${T.unknown[1]} 3px 5px)`;
    document.getElementById("key-absent").style.background = T.ground;
  }

  // ---- places
  const plotWidth = () => width - GUTTER - RIGHT, plotHeight = () => height - TOP - AXIS;
  const timeAt = (x) => view.t0 + ((x - GUTTER) / plotWidth()) * (view.t1 - view.t0);
  const yAt = (y) => view.y0 + ((y - TOP) / plotHeight()) * (view.y1 - view.y0);
  const xOf = (t) => GUTTER + ((t - view.t0) / (view.t1 - view.t0)) * plotWidth();
  const pixelOf = (y) => TOP + ((y - view.y0) / (view.y1 - view.y0)) * plotHeight();
  function pieceAt(y) {
    const edges = scales[view.scale];
    let low = 0, high = pieces - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (edges[middle] <= y) low = middle; else high = middle - 1; }
    return low;
  }
  function levelNow() {
    // The coarsest level whose columns are not wider than a pixel; else the finest one.
    const perPixel = (view.t1 - view.t0) / plotWidth();
    let best = levels[0];
    for (const level of levels) if (level.factor * step <= perPixel * 1.001) best = level;
    return best;
  }
  // The columns of a level that a pixel covers, the last one inclusive.
  function columnsAt(level, left, right) {
    const span = level.factor * step, most = level.columns - 1;
    const first = Math.max(0, Math.min(most, Math.floor(left / span + 1e-9)));
    return [first, Math.max(first, Math.min(most, Math.ceil(right / span - 1e-9) - 1))];
  }
  // A piece in columns: the mean of what is known, rounded up; unknown if most of them are and nothing was accessed.
  function mean(level, piece, from, to) {
    const base = piece * level.columns;
    if (from === to) return level.cells[base + from];
    let sum = 0, known = 0, unknown = 0;
    for (let column = from; column <= to; column++) {
      const value = level.cells[base + column];
      if (value === UNKNOWN) unknown++;
      else if (value !== ABSENT) { known++; sum += value; }
    }
    if (!known && !unknown) return ABSENT;
    return !known || (!sum && unknown > known) ? UNKNOWN : Math.ceil(sum / known);
  }
  // What pieces first..last together are in columns: as hot as the hottest; unknown if most bytes are.
  function cell(level, first, last, from, to) {
    let hottest = -1, at = first, unknown = 0, covered = 0;
    for (let piece = first; piece <= last; piece++) {
      const value = mean(level, piece, from, to);
      if (value === ABSENT) continue;
      covered += sizes[piece];
      if (value === UNKNOWN) unknown += sizes[piece];
      else if (value > hottest) { hottest = value; at = piece; }
    }
    if (!covered) return [ABSENT, first];
    if (hottest < 1 && unknown > covered / 2) {
      for (at = first; mean(level, at, from, to) !== UNKNOWN; ) at++;
      return [UNKNOWN, at];
    }
    return [Math.max(hottest, 0), at];
  }

  // ---- drawing
  function niceStep(span, room) {
    const least = span / Math.max(1, room);
    for (const unit of [1e-3, 1e-2, 0.1, 1]) for (const k of [1, 2, 5]) if (unit * k >= least) return unit * k;
    for (const s of [10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200]) if (s >= least) return s;
    return 86400 * Math.ceil(least / 86400);
  }
  function drawCells() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const w = Math.max(1, Math.round(plotWidth() * ratio)), h = Math.max(1, Math.round(plotHeight() * ratio));
    const image = context.createImageData(w, h), out = new Uint32Array(image.data.buffer);
    const level = levelNow(), at = (x) => view.t0 + (x / w) * (view.t1 - view.t0);
    // Pixels that cover the same columns have the same values.
    const runs = [], runAt = new Int32Array(w);
    for (let x = 0; x < w; x++) {
      const [from, to] = columnsAt(level, at(x), at(x + 1)), before = runs[runs.length - 1];
      if (!before || before[0] !== from || before[1] !== to) runs.push([from, to]);
      runAt[x] = runs.length - 1;
    }
    const values = new Uint8Array(runs.length);
    let before = "";
    for (let row = 0; row < h; row++) {
      const top = view.y0 + (row / h) * (view.y1 - view.y0), bottom = view.y0 + ((row + 1) / h) * (view.y1 - view.y0);
      const first = pieceAt(top), last = Math.max(first, pieceAt(bottom - 1e-15)), key = first + "-" + last;
      if (key !== before) {
        runs.forEach(([from, to], run) => { values[run] = first === last ? mean(level, first, from, to) : cell(level, first, last, from, to)[0]; });
        before = key;
      }
      for (let x = 0; x < w; x++) {
        const value = values[runAt[x]];
        out[row * w + x] = lut[value === UNKNOWN && (x + row) % (8 * ratio) < 3 * ratio ? UNKNOWN - 1 : value];
      }
    }
    context.putImageData(image, Math.round(GUTTER * ratio), Math.round(TOP * ratio));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }
  function fitted(text, room) {
    if (context.measureText(text).width <= room) return text;
    // The begin and the end say most.
    const cut = (kept) => text.slice(0, Math.ceil(kept / 2)) + "…" + text.slice(text.length - Math.floor(kept / 2));
    let low = 0, high = text.length;
    while (low < high) { const middle = (low + high + 1) >> 1; if (context.measureText(cut(middle)).width <= room) low = middle; else high = middle - 1; }
    return cut(low);
  }
  // Neighbouring pieces of one name within a segment.
  const bands = [];
  for (let i = 0, from = 0; i < pieces; i++) {
    if (i + 1 === pieces || opens[i + 1] || D.names[i + 1] !== D.names[from]) { bands.push([from, i]); from = i + 1; }
  }
  function drawLabels() {
    const T = D.themes[theme], edges = scales[view.scale], placed = [];
    context.textBaseline = "middle";
    context.textAlign = "right";
    const seen = bands
      .map(([first, last]) => [first, last, Math.max(TOP, pixelOf(edges[first])), Math.min(TOP + plotHeight(), pixelOf(edges[last + 1]))])
      .filter(([, , top, bottom]) => bottom > top);
    for (const [first, , top] of seen) {
      // The border of a segment is a line; that of a name within one a fainter tick.
      context.strokeStyle = T.rule;
      context.beginPath();
      context.moveTo(opens[first] ? GUTTER - 14 : GUTTER - 7, Math.round(top) + 0.5);
      context.lineTo(opens[first] ? width - RIGHT : GUTTER, Math.round(top) + 0.5);
      context.stroke();
    }
    seen.sort((a, b) => b[3] - b[2] - (a[3] - a[2]));
    for (const [first, last, top, bottom] of seen) {
      const middle = Math.max(TOP + LINE / 2, Math.min((top + bottom) / 2, TOP + plotHeight() - LINE / 2));
      let size = 0;
      for (let i = first; i <= last; i++) size += sizes[i];
      const two = bottom - top >= 2.3 * LINE, half = two ? LINE : LINE / 2;
      if (placed.some(([low, high]) => middle - half < high && middle + half > low)) continue;
      placed.push([middle - half, middle + half]);
      const name = nameOf(first), where = address(first);
      context.fillStyle = T.text;
      context.font = "12px system-ui, 'DejaVu Sans', sans-serif";
      context.fillText(fitted(name || where, GUTTER - 24), GUTTER - 14, two ? middle - 7 : middle);
      if (two) {
        context.fillStyle = T.faint;
        context.font = "10.5px ui-monospace, 'DejaVu Sans Mono', monospace";
        context.fillText(fitted((name ? where + "  " : "") + bytes(size), GUTTER - 24), GUTTER - 14, middle + 8);
      }
    }
    // Idle memory that takes less room than its bytes.
    if (view.scale === "compact") {
      context.font = "11px system-ui, 'DejaVu Sans', sans-serif";
      context.textAlign = "left";
      for (const [first, last] of D.folded) {
        const top = pixelOf(edges[first]), bottom = pixelOf(edges[last + 1]);
        if (bottom - top < LINE || bottom < TOP || top > TOP + plotHeight()) continue;
        let size = 0;
        for (let i = first; i <= last; i++) size += sizes[i];
        context.fillStyle = T.faint;
        const middle = (Math.max(TOP, top) + Math.min(TOP + plotHeight(), bottom)) / 2;
        context.fillText(bytes(size) + " not accessed, drawn smaller", GUTTER + 10, middle);
      }
    }
  }
  function drawTimes() {
    const T = D.themes[theme], each = niceStep(view.t1 - view.t0, plotWidth() / 90);
    context.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    context.textAlign = "center";
    context.textBaseline = "top";
    for (let k = Math.ceil(view.t0 / each - 1e-9); k * each <= view.t1 + 1e-9; k++) {
      const x = xOf(k * each);
      context.fillStyle = T.rule;
      context.fillRect(Math.round(x), TOP + plotHeight(), 1, 4);
      context.fillStyle = T.faint;
      const text = seconds(k * each, each < 1 ? each : 1);
      const half = context.measureText(text).width / 2;
      context.fillText(text, Math.max(GUTTER, Math.min(width - half, x)), TOP + plotHeight() + 7);
    }
    context.strokeStyle = T.rule;
    context.strokeRect(GUTTER - 0.5, TOP - 0.5, plotWidth() + 1, plotHeight() + 1);
  }
  function drawCross() {
    const at = crosshair || pointer;
    if (!at) return;
    context.strokeStyle = D.themes[theme].text;
    context.globalAlpha = 0.55;
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(Math.round(at.x) + 0.5, TOP); context.lineTo(Math.round(at.x) + 0.5, TOP + plotHeight());
    context.moveTo(GUTTER, Math.round(at.y) + 0.5); context.lineTo(width - RIGHT, Math.round(at.y) + 0.5);
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }
  function draw() {
    asked = 0;
    const ratio = Math.min(2, devicePixelRatio || 1);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = D.themes[theme].ground;
    context.fillRect(0, 0, width, height);
    drawCells();
    drawLabels();
    drawTimes();
    drawCross();
  }
  const redraw = () => { if (!asked) asked = requestAnimationFrame(draw); };

  // ---- the view
  function clamp() {
    const least = Math.min(D.seconds, 4 * step), thin = 1e-9;
    let t = Math.max(least, Math.min(D.seconds, view.t1 - view.t0)), y = Math.max(thin, Math.min(1, view.y1 - view.y0));
    view.t0 = Math.max(0, Math.min(D.seconds - t, view.t0)); view.t1 = view.t0 + t;
    view.y0 = Math.max(0, Math.min(1 - y, view.y0)); view.y1 = view.y0 + y;
  }
  function changed() {
    clamp();
    if (chart) { syncing = true; chart.setScale("x", { min: view.t0, max: view.t1 }); syncing = false; }
    redraw();
  }
  function zoomTime(factor, at = (view.t0 + view.t1) / 2) { view.t0 = at - (at - view.t0) * factor; view.t1 = at + (view.t1 - at) * factor; }
  function zoomAddress(factor, at = (view.y0 + view.y1) / 2) { view.y0 = at - (at - view.y0) * factor; view.y1 = at + (view.y1 - at) * factor; }
  function all() { Object.assign(view, { t0: 0, t1: D.seconds, y0: 0, y1: 1 }); }
  function rescale() {
    // The same addresses stay in view.
    const from = scales[view.scale], at = [view.y0, view.y1].map((y) => { const i = pieceAt(Math.min(y, 1 - 1e-12)); return [i, (y - from[i]) / (from[i + 1] - from[i] || 1)]; });
    view.scale = view.scale === "compact" ? "bytes" : "compact";
    const to = scales[view.scale];
    [view.y0, view.y1] = at.map(([i, part]) => to[i] + part * (to[i + 1] - to[i]));
    const button = document.querySelector('[data-do="scale"]');
    button.textContent = view.scale === "compact" ? "Compact" : "By bytes";
    button.setAttribute("aria-pressed", String(view.scale === "bytes"));
  }
  function flip(to) { theme = to || (theme === "dark" ? "light" : "dark"); paintTheme(); makeChart(); redraw(); }

  // ---- values
  function describe(x, y) {
    const level = levelNow(), span = level.factor * step;
    const [from, to] = columnsAt(level, timeAt(Math.floor(x)), timeAt(Math.floor(x) + 1));
    const row = Math.floor(y - TOP), of = (k) => view.y0 + (k / plotHeight()) * (view.y1 - view.y0);
    const first = pieceAt(of(row)), last = Math.max(first, pieceAt(of(row + 1) - 1e-15));
    const [value, piece] = cell(level, first, last, from, to);
    const end = Math.min(columns - 1, (to + 1) * level.factor - 1), age = ages[piece * columns + end];
    return {
      address: address(piece), end: address(piece, sizes[piece]), size: sizes[piece], name: nameOf(piece), others: last - first,
      value: value === ABSENT ? "not monitored" : value === UNKNOWN ? "unknown" : value === 0 ? "not accessed" : value + " %",
      share: value <= 100 ? value : null,
      age: value === ABSENT || age === 255 ? null : (Math.pow(2, age / D.age_steps) - 1) * D.age_unit,
      from: from * span, to: Math.min(D.seconds, (to + 1) * span),
    };
  }
  function words(d) {
    const known = d.share !== null ? (d.share ? ` of the samples found it accessed` : "") : "";
    const age = d.age === null ? "" : d.share === 0 ? `not accessed for ${seconds(d.age)}` : `like this for ${seconds(d.age)}`;
    return [d.name || "no name", `${d.address}-${d.end}, ${bytes(d.size)}`, d.value + known + (d.share && d.others ? " (the hottest part here)" : ""), age, `${seconds(d.from, step)} to ${seconds(d.to, step)}`].filter(Boolean);
  }
  function showTip(x, y) {
    const lines = words(describe(x, y));
    tip.replaceChildren(...lines.map((line, number) => {
      const div = document.createElement("div");
      if (number === 0) { const b = document.createElement("b"); b.textContent = line; div.append(b); } else div.textContent = line;
      if (number === 1) div.className = "mono";
      return div;
    }));
    tip.style.display = "block";
    const left = x + 18 + tip.offsetWidth > width ? x - 18 - tip.offsetWidth : x + 18;
    tip.style.left = Math.max(0, left) + "px";
    tip.style.top = Math.max(0, Math.min(y + 14, height - tip.offsetHeight)) + "px";
  }
  function hideTip() { tip.style.display = "none"; pointer = null; redraw(); }
  const inside = (x, y) => x >= GUTTER && x < width - RIGHT && y >= TOP && y < TOP + plotHeight();

  // ---- input
  const local = (event) => { const r = canvas.getBoundingClientRect(); return { x: event.clientX - r.left, y: event.clientY - r.top }; };
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { ...local(event), last: local(event), boxed: event.shiftKey };
    canvas.setPointerCapture(event.pointerId);
    if (!held.boxed) canvas.classList.add("held");
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = local(event);
    crosshair = null;
    if (held && held.boxed) {
      Object.assign(box.style, { display: "block", left: Math.min(at.x, held.x) + "px", top: Math.min(at.y, held.y) + "px", width: Math.abs(at.x - held.x) + "px", height: Math.abs(at.y - held.y) + "px" });
      return;
    }
    if (held) {
      const t = ((at.x - held.last.x) / plotWidth()) * (view.t1 - view.t0), y = ((at.y - held.last.y) / plotHeight()) * (view.y1 - view.y0);
      view.t0 -= t; view.t1 -= t; view.y0 -= y; view.y1 -= y;
      held.last = at;
      changed();
    }
    if (inside(at.x, at.y)) { pointer = at; showTip(at.x, at.y); redraw(); if (chart) chart.setCursor({ left: at.x - GUTTER, top: -10 }, false); } else hideTip();
  });
  function release(event) {
    if (held && held.boxed && event.type === "pointerup") {
      const at = local(event), [x0, x1] = [held.x, at.x].sort((a, b) => a - b), [y0, y1] = [held.y, at.y].sort((a, b) => a - b);
      if (x1 - x0 > 4 && y1 - y0 > 4) {
        const to = { t0: timeAt(x0), t1: timeAt(x1), y0: yAt(y0), y1: yAt(y1) };
        Object.assign(view, to);
        changed();
      }
    }
    box.style.display = "none";
    canvas.classList.remove("held");
    held = null;
  }
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { if (!held) hideTip(); });
  canvas.addEventListener("dblclick", () => { all(); changed(); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const at = local(event), amount = event.deltaY || event.deltaX, factor = Math.exp(Math.max(-1, Math.min(1, amount / 240)));
    if (event.shiftKey || at.x < GUTTER) zoomAddress(factor, yAt(at.y)); else zoomTime(factor, timeAt(at.x));
    changed();
    if (inside(at.x, at.y)) showTip(at.x, at.y);
  }, { passive: false });
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function read(key) {
    const [dx, dy] = moves[key], from = crosshair || { x: GUTTER + plotWidth() / 2, y: TOP + plotHeight() / 2 };
    crosshair = { x: Math.max(GUTTER, Math.min(width - RIGHT - 1, from.x + 8 * dx)), y: Math.max(TOP, Math.min(TOP + plotHeight() - 1, from.y + 8 * dy)) };
    showTip(crosshair.x, crosshair.y);
    said.textContent = words(describe(crosshair.x, crosshair.y)).join(", ");
    redraw();
  }
  const actions = {
    in: () => { zoomTime(0.7); zoomAddress(0.7); }, out: () => { zoomTime(1 / 0.7); zoomAddress(1 / 0.7); },
    all, scale: rescale, theme: () => flip(),
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const t = (view.t1 - view.t0) / 10, y = (view.y1 - view.y0) / 10;
    if (event.key in moves) {
      event.preventDefault();
      if (event.shiftKey) { read(event.key); return; }
      const [dx, dy] = moves[event.key];
      view.t0 += dx * t; view.t1 += dx * t; view.y0 += dy * y; view.y1 += dy * y;
    } else if (event.key === "+" || event.key === "=") actions.in();
    else if (event.key === "-") actions.out();
    else if (event.key === "t") zoomTime(0.7);
    else if (event.key === "T") zoomTime(1 / 0.7);
    else if (event.key === "a") zoomAddress(0.7);
    else if (event.key === "A") zoomAddress(1 / 0.7);
    else if (event.key === "0" || event.key === "Home") { event.preventDefault(); all(); }
    else if (event.key === "s") rescale();
    else if (event.key === "d") flip();
    else if (event.key === "Escape") { crosshair = null; hideTip(); }
    else return;
    changed();
  });
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => { actions[button.dataset.do](); changed(); });

  // ---- the curve
  function makeChart() {
    const T = D.themes[theme], times = Array.from({ length: columns }, (_, i) => (i + 0.5) * step);
    if (chart) chart.destroy();
    chart = new uPlot({
      width, height: 190, padding: [8, RIGHT, 0, 0],
      scales: { x: { time: false, min: view.t0, max: view.t1 }, y: { range: (_u, _min, max) => [0, max > 0 ? max * 1.06 : 1] } },
      cursor: { y: false, drag: { x: true, y: false } },
      legend: { live: true },
      axes: [
        { stroke: T.faint, font: "11px system-ui, sans-serif", grid: { stroke: T.rule, width: 1 }, ticks: { stroke: T.rule }, size: 28,
          splits: (_u, _axis, min, max) => { const each = niceStep(max - min, plotWidth() / 90), out = []; for (let k = Math.ceil(min / each); k * each <= max; k++) out.push(k * each); return out; },
          values: (_u, splits) => splits.map((v, i, all) => seconds(v, all.length > 1 && all[1] - all[0] < 1 ? all[1] - all[0] : 1)) },
        { stroke: T.faint, font: "11px system-ui, sans-serif", grid: { stroke: T.rule, width: 1 }, ticks: { show: false }, size: GUTTER,
          splits: (_u, _axis, _min, max) => { let each = 1; while (max / each > 5) each *= 2; const out = []; for (let v = 0; v <= max; v += each) out.push(v); return out; },
          values: (_u, splits) => splits.map((v) => (v ? bytes(v).replace(".0 ", " ") : "0")) },
      ],
      series: [{ label: "time", value: (_u, v) => (v === null ? "" : seconds(v, step)) }].concat(
        D.curves.map((curve) => ({
          label: curve.label, stroke: T.lines[curve.line], width: 1.6, points: { show: false }, spanGaps: false,
          dash: curve.dashed ? [5, 4] : undefined, fill: curve.filled ? T.lines[curve.line] + "30" : undefined,
          value: (_u, v) => (v === null ? "" : bytes(v)),
        }))),
      hooks: {
        setScale: [(u, key) => {
          if (key !== "x" || syncing) return;
          view.t0 = u.scales.x.min; view.t1 = u.scales.x.max;
          redraw();
        }],
      },
    }, [times, ...curves], document.getElementById("curve"));
  }
  function resize() {
    width = map.clientWidth;
    height = Math.max(300, Math.min(680, Math.round(innerHeight * 0.58)));
    canvas.style.height = height + "px";
    if (chart) chart.setSize({ width, height: 190 });
    redraw();
  }
  addEventListener("resize", resize);
  let onScreen = theme;
  addEventListener("beforeprint", () => { onScreen = theme; flip("light"); draw(); });
  addEventListener("afterprint", () => flip(onScreen));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => flip(event.matches ? "dark" : "light"));
  paintTheme();
  resize();
  makeChart();
  draw();
  // For scripts, and for kdamon's own tests.
  window.kdamon = {
    view,
    show: (part) => { Object.assign(view, part); changed(); draw(); },
    placeOf: (t, at) => {
      // The middle of a pixel.
      const place = BigInt("0x" + at), edges = scales[view.scale];
      let piece = 0;
      while (piece + 1 < pieces && BigInt("0x" + address(piece + 1)) <= place) piece++;
      const part = Number(place - BigInt("0x" + address(piece))) / sizes[piece];
      return [Math.floor(xOf(t)) + 0.5, Math.floor(pixelOf(edges[piece] + Math.min(1, part) * (edges[piece + 1] - edges[piece]))) + 0.5];
    },
    drawNow: () => { pointer = crosshair = null; draw(); },
    chart: () => chart,
    ready: true,
  };
})();
