"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const { classes, outcomes, videos, splits } = data;
const suspects = new Map(data.suspects.map(s => [s.i, s]));  // videos whose label is probably wrong, by row, the most suspicious first
const N = videos.name.length, K = classes.length, PER_PAGE = 3, ROWS = 100;
const plural = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

function make(tag, attributes = {}, ...children) {  // an element; text only ever becomes text
  const e = document.createElementNS(["svg", "path", "circle"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

// What is shown: `shown` holds the rows that pass the filters; everything below is drawn from it
const state = { f: 0, shown: [], passes: new Uint8Array(N), cell: null, opener: null, selection: [], page: 0, current: -1 };
const predicted = (f, i) => outcomes[f].pred[i];  // -1: no prediction
const known = i => videos.label[i] >= 0;
const isRight = (f, i) => known(i) && predicted(f, i) === videos.label[i];
const isWrong = (f, i) => known(i) && predicted(f, i) >= 0 && predicted(f, i) !== videos.label[i];
const playable = i => videos.state[i] === "";
const byConfidence = f => (a, b) => playable(b) - playable(a) || outcomes[f].p[b] - outcomes[f].p[a] || a - b;

function fill(select, choices) {  // [value, text] pairs
  select.replaceChildren(...choices.map(([value, text]) => make("option", { value }, text)));
}

function filter() {
  const value = id => $(id).value === "" ? -1 : +$(id).value, text = $("name").value.trim().toLowerCase();
  state.f = +$("feature").value;
  const [split, label, wrong, right] = ["split", "class", "wrong", "correct"].map(value);
  state.shown = [];
  for (let i = 0; i < N; i++) {
    const pass = (split < 0 || videos.split[i] === split) && (label < 0 || videos.label[i] === label)
      && (wrong < 0 || isWrong(wrong, i)) && (right < 0 || isRight(right, i))
      && (!text || videos.name[i].toLowerCase().includes(text) || videos.path[i].toLowerCase().includes(text));
    state.passes[i] = pass;
    if (pass) state.shown.push(i);
  }
  state.narrowed = label >= 0 || wrong >= 0 || right >= 0 || text !== "";
  const n = state.shown.length;
  $("count").textContent = plural(n, "video") + (state.narrowed ? ` pass${n === 1 ? "es" : ""} the filters.` : ".");
  $("clear").disabled = !state.narrowed;
  drawMatrix(); drawMap(); drawList(); refresh();
}

const splitWord = () => $("split").value === "" ? "" : splits[+$("split").value] + " ";

// Matrix

let cells = [], counts = [], sums = [], focused = [0, 0];

function buildMatrix() {
  const table = $("matrix"), corner = make("th", { scope: "col" }, "true \\ predicted");
  table.style.setProperty("--classes", K);
  const head = make("tr", {}, corner, ...classes.map(name => make("th", { scope: "col", title: name }, make("span", {}, name))));
  const body = make("tbody");
  for (let t = 0; t < K; t++) {
    const row = make("tr", {}, make("th", { scope: "row", title: classes[t] }, classes[t]));
    cells.push([]);
    for (let p = 0; p < K; p++) {
      const cell = make("td", { role: "gridcell", tabindex: -1, "data-t": t, "data-p": p });
      if (t === p) cell.className = "diagonal";
      cells[t].push(cell);
      row.append(cell);
    }
    body.append(row);
  }
  table.append(make("thead", {}, head), body);
  table.addEventListener("click", e => { const c = cellOf(e.target); if (c) openCell(...c, e.detail === 0); });
  table.addEventListener("mouseover", e => { const c = cellOf(e.target); if (c) describe(...c); });
  table.addEventListener("focusin", e => { const c = cellOf(e.target); if (c) { roveTo(...c); describe(...c); } });
  table.addEventListener("keydown", onMatrixKey);
}

function cellOf(target) {
  const td = target.closest("td");
  return td && [+td.dataset.t, +td.dataset.p];
}

function roveTo(t, p) {  // one cell of the matrix is in the focus order
  cells[focused[0]][focused[1]].tabIndex = -1;
  focused = [t, p];
  cells[t][p].tabIndex = 0;
}

function onMatrixKey(e) {
  const c = cellOf(e.target);
  if (!c) return;
  const [t, p] = c, last = K - 1;
  if (e.key === "Enter" || e.key === " ") { e.preventDefault(); openCell(t, p, true); return; }
  const to = { ArrowUp: [t - 1, p], ArrowDown: [t + 1, p], ArrowLeft: [t, p - 1], ArrowRight: [t, p + 1],
               Home: [e.ctrlKey ? 0 : t, 0], End: [e.ctrlKey ? last : t, last], PageUp: [0, p], PageDown: [last, p] }[e.key];
  if (!to) return;
  e.preventDefault();
  const inside = to.map(v => Math.min(last, Math.max(0, v)));
  cells[inside[0]][inside[1]].focus({ preventScroll: true });
  reveal(cells[inside[0]][inside[1]], $("matrix-scroll"));
}

function reveal(cell, box, page = true) {  // scroll the box, and the page only if needed, so that neither header covers the cell
  const head = $("matrix").tHead.offsetHeight, label = $("matrix").rows[0].cells[0].offsetWidth;
  const b = box.getBoundingClientRect(), c = cell.getBoundingClientRect();
  if (c.top < b.top + head) box.scrollTop -= b.top + head - c.top; else if (c.bottom > b.bottom) box.scrollTop += c.bottom - b.bottom + 2;
  if (c.left < b.left + label) box.scrollLeft -= b.left + label - c.left; else if (c.right > b.right) box.scrollLeft += c.right - b.right + 2;
  const d = cell.getBoundingClientRect();
  if (page && (d.top < 0 || d.bottom > innerHeight)) cell.scrollIntoView({ block: "nearest" });
}

const describe = (t, p) => { $("matrix-status").textContent = `${counts[t][p]} of ${sums[t]}: ${classes[t]} → ${classes[p]}`; };

function drawMatrix() {
  counts = classes.map(() => new Array(K).fill(0));
  for (const i of state.shown) if (known(i) && predicted(state.f, i) >= 0) counts[videos.label[i]][predicted(state.f, i)]++;
  sums = counts.map(row => row.reduce((a, b) => a + b, 0));
  for (let t = 0; t < K; t++) for (let p = 0; p < K; p++) {
    const cell = cells[t][p], n = counts[t][p];
    cell.textContent = n || "";
    cell.style.setProperty("--share", n ? .1 + .9 * n / sums[t] : 0);
    cell.setAttribute("aria-label", `${classes[t]}, predicted ${classes[p]}: ${plural(n, "video")}`);
  }
  outline();
  const total = sums.reduce((a, b) => a + b, 0), right = counts.reduce((a, row, t) => a + row[t], 0);
  const training = data.training >= 0 && $("split").value === String(data.training);
  const name = outcomes[state.f].name, kind = `${state.narrowed ? "filtered " : ""}${splitWord()}video`;
  const top1 = state.narrowed ? "" : ` · top-1 ${(right / total).toFixed(3)}`;
  $("matrix-title").textContent = total ? `${name}: ${right.toLocaleString("en")} of ${plural(total, kind)} predicted correctly${top1}`
    : training ? "The classifiers were trained on these videos, so there are no predictions for them."
    : state.shown.length ? `None of these videos has both a label and a prediction by ${name}.` : "No video passes the filters.";
  drawConfusions();
}

function confusions() {  // [count, true, predicted], the most frequent first
  const found = [];
  counts.forEach((row, t) => row.forEach((n, p) => { if (n && t !== p) found.push([n, t, p]); }));
  return found.sort((a, b) => b[0] - a[0] || a[1] - b[1] || a[2] - b[2]);
}

function drawConfusions() {
  const found = confusions().slice(0, 10);
  $("confusions-title").hidden = !found.length;
  $("confusions").replaceChildren(...found.map(([n, t, p]) => {
    const button = make("button", { type: "button" }, `${n} × ${classes[t]} → ${classes[p]}`);
    button.addEventListener("click", e => openCell(t, p, e.detail === 0, button));
    return make("li", {}, button);
  }));
}

function outline() {  // marks the cell whose videos are shown
  for (const old of $("matrix").querySelectorAll("[aria-selected]")) old.removeAttribute("aria-selected");
  if (state.cell) cells[state.cell[0]][state.cell[1]].setAttribute("aria-selected", "true");
}

function openCell(t, p, byKey, opener = cells[t][p]) {
  state.cell = [t, p];
  outline();
  roveTo(t, p);
  reveal(cells[t][p], $("matrix-scroll"), false);
  const rows = cellRows(t, p);
  open(rows, cellSentence(t, p, rows.length), opener, byKey);
}

const cellRows = (t, p) => state.shown.filter(i => videos.label[i] === t && predicted(state.f, i) === p).sort(byConfidence(state.f));

function cellSentence(t, p, n) {
  const b = text => make("b", {}, text), kind = (state.narrowed ? "filtered " : "") + splitWord(), name = b(outcomes[state.f].name);
  if (!sums[t]) return [`There is no ${kind}video of `, b(classes[t]), "."];
  const verb = n === 1 ? "is" : "are", done = t === p ? ["predicted correctly"] : ["predicted as ", b(classes[p])];
  const first = `${n || "None"} of the ${plural(sums[t], `${kind}video`)} of `;
  return [first, b(classes[t]), ` ${verb} `, ...done, " by ", name, n > 1 ? ", most confident first." : "."];
}

// Map

const SHAPES = [  // circle, square, triangle, diamond, triangle, plus, cross, star
  "M0-4.4A4.4 4.4 0 1 1 0 4.4A4.4 4.4 0 1 1 0-4.4Z", "M-4-4H4V4H-4Z", "M0-5L4.8 3.8H-4.8Z", "M0-5.4L5.4 0L0 5.4L-5.4 0Z", "M0 5L4.8-3.8H-4.8Z",
  "M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
  "M0-2L3-5L5-3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0L-5-3L-3-5Z",
  "M0-6L1.6-2L6-1.8L2.6 .9L3.7 5L0 2.7L-3.7 5L-2.6 .9L-6-1.8L-1.6-2Z",
];
const look = c => data.looks.indexOf(c);
const colour = c => look(c) < 0 ? "other" : look(c) % 7, shape = c => SHAPES[look(c) < 0 ? 0 : look(c) % SHAPES.length];
let points = [], zoom = 1, drawnMap = -1, ring = null;

function drawMap() {  // only while it is seen
  if ($("view-map").hidden) return;
  const map = outcomes[state.f].map;
  for (const id of ["map-scroll", "map-tools", "legend"]) $(id).hidden = !map;
  if (!map) {
    points = []; drawnMap = -1;
    $("map-title").textContent = `There is no map of ${outcomes[state.f].name}: ${outcomes[state.f].no_map}.`;
    $("map-status").textContent = "";
    return;
  }
  if (drawnMap !== state.f) buildMap(map);
  for (const point of points) {
    point.inside = state.passes[point.i] === 1;
    const kind = !point.inside ? " out" : isWrong(state.f, point.i) ? " wrong" : "";
    point.mark.setAttribute("class", `look-${colour(videos.label[point.i])}${kind}`);
  }
  const inside = points.filter(q => q.inside);
  for (const point of inside) $("map").insertBefore(point.mark, ring);  // what passes the filters lies on top
  if (!inside.some(q => q.i === state.current)) state.current = -1;
  const part = inside.length === points.length ? "" : `, of which ${inside.length.toLocaleString("en")} pass the filters; the others are faint`;
  $("map-title").textContent = `${map.title}${part}. Outlined: predicted wrongly.`;
  placeMap(map);
}

function buildMap(map) {
  drawnMap = state.f;
  points = map.i.map((i, at) => ({ i, x: map.x[at], y: map.y[at], mark: make("path", { d: shape(videos.label[i]), "data-i": i }) }));
  ring = make("circle", { r: 9, visibility: "hidden" });
  $("map").replaceChildren(...points.map(q => q.mark), ring);
  const there = new Set(points.map(q => videos.label[q.i])), others = [...there].filter(c => look(c) < 0).length;
  const mark = c => make("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, make("path", { d: shape(c), class: `look-${colour(c)}` }));
  const key = (c, text) => make("li", {}, mark(c), text), named = data.looks.filter(c => there.has(c));
  $("legend").replaceChildren(...named.map(c => key(c, classes[c])), ...(others ? [key(-1, plural(others, "other class", "other classes"))] : []));
}

function placeMap(map = outcomes[state.f].map) {
  if (!map || $("view-map").hidden) return;
  const pad = 14, free = $("map-scroll").clientWidth || 300, most = Math.max(320, .72 * innerHeight);
  const scale = zoom * Math.min((free - 2 * pad) / 10000, (most - 2 * pad) / map.height);  // pixels per unit
  const width = Math.max(free, Math.floor(2 * pad + 10000 * scale)), height = Math.ceil(2 * pad + scale * map.height);
  const left = (width - 10000 * scale) / 2;
  $("map").setAttribute("width", width); $("map").setAttribute("height", height);
  for (const q of points) {
    q.at = [left + scale * q.x, height - pad - scale * q.y];
    q.mark.setAttribute("transform", `translate(${q.at[0].toFixed(1)} ${q.at[1].toFixed(1)})${innerWidth < 640 && zoom < 2 ? " scale(.8)" : ""}`);
  }
  markPoint();
}

function markPoint() {
  const q = points.find(q => q.i === state.current);
  if (!ring) return;
  ring.setAttribute("visibility", q ? "visible" : "hidden");
  if (q) { ring.setAttribute("cx", q.at[0]); ring.setAttribute("cy", q.at[1]); }
}

function setZoom(z) {
  const box = $("map-scroll"), before = zoom, q = points.find(q => q.i === state.current);
  const middle = [box.scrollLeft + box.clientWidth / 2, box.scrollTop + box.clientHeight / 2].map((v, k) => q ? q.at[k] : v);
  zoom = Math.min(8, Math.max(1, z));
  $("zoom-out").disabled = zoom === 1; $("zoom-in").disabled = zoom === 8;
  placeMap();
  const to = q ? q.at : middle.map(v => v * zoom / before);
  box.scrollTo(to[0] - box.clientWidth / 2, to[1] - box.clientHeight / 2);
}

function nearest(x, y, within) {  // the point that passes the filters and lies nearest
  let best = null, least = within * within;
  for (const q of points) if (q.inside) {
    const d = (q.at[0] - x) ** 2 + (q.at[1] - y) ** 2;
    if (d <= least) [best, least] = [q, d];
  }
  return best;
}

function neighbour([x, y], [dx, dy]) {  // the next point in a direction, not more than 45 degrees aside
  let best = null, least = Infinity;
  for (const q of points) if (q.inside && q.i !== state.current) {
    const [a, b] = [q.at[0] - x, q.at[1] - y], along = a * dx + b * dy, aside = Math.abs(a * dy - b * dx);
    if (along > 0 && aside <= along && along + 2 * aside < least) [best, least] = [q, along + 2 * aside];
  }
  return best;
}

function stepTo(q) {
  if (!q) return;
  state.current = q.i;
  markPoint();
  $("map-status").textContent = oneLine(q.i);
  const box = $("map-scroll"), [x, y] = q.at;
  if (x < box.scrollLeft + 20 || x > box.scrollLeft + box.clientWidth - 20) box.scrollLeft = x - box.clientWidth / 2;
  if (y < box.scrollTop + 20 || y > box.scrollTop + box.clientHeight - 20) box.scrollTop = y - box.clientHeight / 2;
}

function onMapKey(e) {
  const way = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[e.key], q = points.find(q => q.i === state.current);
  if (way) stepTo(q ? neighbour(q.at, way) : points.find(q => q.inside));
  else if (e.key === "+" || e.key === "=") setZoom(2 * zoom);
  else if (e.key === "-") setZoom(zoom / 2);
  else if ((e.key === "Enter" || e.key === " ") && q) openOne(q.i, $("map"), true);
  else return;
  e.preventDefault();
}

function onMap(e, found) {  // a mouse or a finger over the map
  const b = $("map").getBoundingClientRect(), q = nearest(e.clientX - b.left, e.clientY - b.top, e.pointerType === "mouse" || e.type === "mousemove" ? 12 : 24);
  if (q) found(q);
}

// List

let listed = 0, rows = [];
const byLabel = () => $("order").value === "labels";

function reorder() {  // labels are mostly those of training videos
  if (byLabel() && $("split").value !== "") { $("split").value = ""; filter(); } else drawList();
}

function oneLine(i) {  // a video in words
  const p = predicted(state.f, i), truth = known(i) ? classes[videos.label[i]] : "no label";
  return `${videos.name[i]}: ${truth}${p < 0 ? "" : ` → ${classes[p]} (${outcomes[state.f].p[i].toFixed(2)})`}`;
}

function drawList() {
  const f = state.f, rank = i => isWrong(f, i) ? 0 : predicted(f, i) >= 0 ? 1 : 2;
  rows = byLabel() ? [...suspects.keys()].filter(i => state.passes[i]) : [...state.shown];
  if ($("order").value === "mistakes") rows.sort((a, b) => rank(a) - rank(b) || (rank(a) ? 1 : -1) * (outcomes[f].p[a] - outcomes[f].p[b]) || a - b);
  else if (!byLabel()) rows.sort((a, b) => videos.name[a] < videos.name[b] ? -1 : videos.name[a] > videos.name[b] ? 1 : a - b);
  listed = 0;
  $("list").replaceChildren();
  listMore();
}

function listMore() {
  const next = rows.slice(listed, listed + ROWS);
  $("list").append(...next.map(i => make("li", {}, listButton(i))));
  listed += next.length;
  const left = rows.length - listed;
  $("more").hidden = !left;
  $("more").textContent = `Show ${Math.min(left, ROWS)} more of ${plural(left, "video")}`;
  if (!rows.length) $("list").append(make("li", {}, "No video passes the filters."));
}

function listButton(i) {
  if (byLabel()) return suspectButton(i);
  const f = state.f, p = predicted(f, i), none = p < 0 && (videos.split[i] === data.training ? "trained on" : "not predicted");
  const name = make("span", {}, videos.name[i], ...(playable(i) ? [] : [make("small", {}, " (not in this file)")]));
  const answer = make("small", {}, none ? ` (${none})` : ` → ${classes[p]} ${outcomes[f].p[i].toFixed(2)}`);
  const truth = make("span", {}, known(i) ? classes[videos.label[i]] : "no label", answer);
  const button = make("button", { type: "button", "data-i": i }, sign(f, i), name, truth);
  if (i === state.current) button.setAttribute("aria-current", "true");
  return button;
}

function suspectButton(i) {
  const s = suspects.get(i), name = make("span", {}, videos.name[i], ...(playable(i) ? [] : [make("small", {}, " (not in this file)")]));
  const labels = make("span", {}, classes[videos.label[i]], make("small", {}, ` → ${classes[s.suggested]}?`));
  return make("button", { type: "button", "data-i": i }, make("span"), name, labels);
}

function sign(f, i) {
  if (isRight(f, i)) return make("span", { class: "right", role: "img", "aria-label": "correct" }, "✓");
  if (isWrong(f, i)) return make("span", { class: "wrong", role: "img", "aria-label": "wrong" }, "✗");
  return make("span");
}

function onListKey(e) {
  const all = [...$("list").querySelectorAll("button")], at = all.indexOf(e.target.closest("button"));
  const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: all.length - 1 }[e.key];
  if (at < 0 || to === undefined) return;
  e.preventDefault();
  all[Math.min(all.length - 1, Math.max(0, to))].focus();
}

// Player

function openOne(i, opener, byKey) {
  state.cell = null;
  outline();
  state.current = i;
  markPoint();
  for (const button of $("list").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  $("list").querySelector(`[data-i="${i}"]`)?.setAttribute("aria-current", "true");
  open([i], videoSentence(i), opener, byKey);
}

function refresh() {  // the open cell or video as the filters and the feature now have it
  if (!state.opener) return;
  const rows = state.cell ? cellRows(...state.cell) : state.selection;
  $("sentence").replaceChildren(...(state.cell ? cellSentence(...state.cell, rows.length) : videoSentence(rows[0])));
  if (state.drawn === state.f && rows.join() === state.selection.join()) return;  // the videos play on
  state.selection = rows;
  showPage(0);
}

function videoSentence(i) {
  const b = text => make("b", {}, text), p = predicted(state.f, i), head = `${splits[videos.split[i]]} video `, f = outcomes[state.f].name;
  const truth = known(i) ? ["of ", b(classes[videos.label[i]])] : ["without a label"];
  const what = p < 0 ? [] : isRight(state.f, i) ? [", predicted correctly by ", b(f)] : [", predicted as ", b(classes[p]), " by ", b(f)];
  return [head[0].toUpperCase() + head.slice(1), ...truth, ...what, "."];
}

function open(selection, sentence, opener, byKey) {
  Object.assign(state, { selection, opener });
  $("sentence").replaceChildren(...sentence);
  showPage(0);
  $("back").textContent = `Back to the ${{ "view-matrix": "matrix", "view-map": "map", "view-list": "list" }[opener.closest("[role=tabpanel]").id]}`;
  $("back").hidden = false;
  $("player").scrollTop = 0;
  if (byKey) $("sentence").focus({ preventScroll: true });
  if (narrow() && state.begun) $("player").scrollIntoView({ block: "start" });
}

const narrow = () => matchMedia("(max-width: 62rem)").matches;

function close() {  // back to where it was opened
  for (const v of $("cards").querySelectorAll("video")) v.pause();
  if (!state.opener) return;
  const opener = state.opener.isConnected ? state.opener : document.querySelector("[role=tab][aria-selected=true]");
  opener.focus({ preventScroll: true });
  const { top, bottom } = opener.getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) opener.scrollIntoView({ block: opener.id === "map" ? "nearest" : "center" });
}

function showPage(page) {
  release();
  Object.assign(state, { page, drawn: state.f });
  const first = page * PER_PAGE, n = state.selection.length, here = state.selection.slice(first, first + PER_PAGE);
  $("cards").replaceChildren(...here.map(card));
  $("pages").hidden = n <= PER_PAGE;
  $("position").textContent = `${first + 1} to ${first + here.length} of ${n}`;
  $("previous").disabled = page === 0;
  $("next").disabled = first + here.length === n;
}

function card(i) {
  const facts = [splits[videos.split[i]], known(i) ? classes[videos.label[i]] : "no label"];
  const note = videos.note[i] ? [make("br"), videos.note[i]] : [];
  const figure = make("figure", {}, player(i), make("figcaption", {}, make("b", {}, videos.name[i]), make("br"), facts.join(" · "), ...note));
  const head = make("tr", {}, ...["feature", "predicted class", "p", "p of true class"].map(h => make("th", { scope: "col" }, h)));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...outcomes.map((_, f) => answer(f, i))));
  const answers = videos.split[i] !== data.training ? table : suspects.has(i) ? outOfFold(suspects.get(i).by)
    : make("p", {}, "The classifiers were trained on this video, so there is no prediction for it.");
  const s = suspects.get(i), b = text => make("b", {}, text);
  const doubt = s ? [make("p", {}, "The label ", b(classes[videos.label[i]]), ` (p ${s.quality.toFixed(2)}) is probably wrong; suggested is `, b(classes[s.suggested]), ".")] : [];
  return make("section", { class: "card", "data-i": i, "aria-label": videos.name[i] }, figure, make("div", {}, ...doubt, answers));
}

function outOfFold(by) {  // what each feature predicts for a training video, by classifiers that were not trained on it
  const head = make("tr", {}, make("th", { scope: "col" }, "feature"), make("th", { scope: "col" }, "predicted without training on it"));
  const answer = (p, f) => make("tr", f === state.f ? { class: "chosen" } : {}, make("th", { scope: "row" }, outcomes[f].name),
    make("td", {}, p < 0 ? "no prediction" : classes[p]));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...by.map(answer)));
}

function answer(f, i) {  // a row: what one feature predicts
  const row = make("tr", f === state.f ? { class: "chosen" } : {}, make("th", { scope: "row" }, outcomes[f].name)), p = predicted(f, i);
  if (p < 0) row.append(make("td", { colspan: 3 }, "no prediction"));
  else {
    const ofTrue = known(i) ? probability(outcomes[f].true[i]) : make("td", {}, "–");
    row.append(make("td", {}, sign(f, i), " " + classes[p]), probability(outcomes[f].p[i]), ofTrue);
  }
  return row;
}

function probability(p) {
  const bar = make("i", { "aria-hidden": "true" });
  bar.style.width = `${100 * p}%`;
  return make("td", {}, p.toFixed(3), bar);
}

function player(i) {  // a muted video that plays by itself, or why there is none
  if (!playable(i)) return make("div", { class: "gone" }, videos.state[i]);
  const video = make("video", { controls: "", loop: "", playsinline: "", "aria-label": `video ${videos.name[i]}` });
  video.muted = true;
  video.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  video.addEventListener("error", () => video.replaceWith(make("div", { class: "gone" }, "This browser cannot play this video.")));
  const start = () => { video.src = URL.createObjectURL(new Blob([bytesOf(i)], { type: "video/mp4" })); };
  if ($(`v${i}`)) start(); else document.addEventListener("DOMContentLoaded", start, { once: true });  // the page is still being read
  return video;
}

const bytesOf = i => Uint8Array.from(atob($(`v${i}`).textContent), c => c.charCodeAt(0));

function release() {  // the memory of the videos shown before
  for (const v of $("cards").querySelectorAll("video")) { v.pause(); URL.revokeObjectURL(v.src); }
}

// Tabs and the rest

const TABS = ["matrix", "map", "list"];

function showTab(name, focus) {
  for (const t of TABS) {
    $(`view-${t}`).hidden = t !== name;
    $(`tab-${t}`).setAttribute("aria-selected", t === name);
    $(`tab-${t}`).tabIndex = t === name ? 0 : -1;
  }
  if (focus) $(`tab-${name}`).focus();
  if (name === "map") drawMap();
}

function onTabKey(e) {
  const at = TABS.findIndex(t => e.target.id === `tab-${t}`), to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: 2 }[e.key];
  if (at < 0 || to === undefined) return;
  e.preventDefault();
  showTab(TABS[(to + 3) % 3], true);
}

function clear() {
  for (const id of ["class", "wrong", "correct", "name"]) $(id).value = "";
  filter();
  $("feature").focus();
}

function openFirst() {  // the most frequent confusion, else the class most often predicted correctly, else nothing
  const [worst] = confusions(), best = counts.map((row, t) => [row[t], t]).sort((a, b) => b[0] - a[0])[0];
  const cell = worst ? worst.slice(1) : best && best[0] ? [best[1], best[1]] : null;
  if (!cell) { $("back").hidden = true; $("sentence").textContent = "Choose a video on the map or in the list."; $("pages").hidden = true; return; }
  openCell(...cell, false);
  $("back").hidden = true;
}

function begin() {
  fill($("feature"), outcomes.map((o, f) => [f, o.name]));
  fill($("split"), [...splits.map((s, k) => [k, s]), ["", "all"]]);
  fill($("class"), [["", "any"], ...classes.map((c, k) => [k, c])]);
  for (const id of ["wrong", "correct"]) fill($(id), [["", "–"], ...outcomes.map((o, f) => [f, o.name])]);
  fill($("order"), [["mistakes", "mistakes first"], ["name", "by name"],
    ...(suspects.size ? [["labels", "labels that are probably wrong"]] : [])]);
  $("split").value = data.first;
  for (const id of ["feature", "split", "class", "wrong", "correct"]) $(id).addEventListener("change", filter);
  $("name").addEventListener("input", filter);
  $("clear").addEventListener("click", clear);
  $("order").addEventListener("change", reorder);
  $("more").addEventListener("click", () => { const at = listed; listMore(); $("list").children[at]?.firstChild.focus(); });
  $("list").addEventListener("click", e => { const b = e.target.closest("button"); if (b) openOne(+b.dataset.i, b, e.detail === 0); });
  $("list").addEventListener("keydown", onListKey);
  $("map").addEventListener("click", e => onMap(e, q => { stepTo(q); openOne(q.i, $("map"), false); }));
  $("map").addEventListener("mousemove", e => onMap(e, q => { $("map-status").textContent = oneLine(q.i); }));
  $("map").addEventListener("keydown", onMapKey);
  $("zoom-in").addEventListener("click", () => setZoom(2 * zoom));
  $("zoom-out").addEventListener("click", () => setZoom(zoom / 2));
  for (const t of TABS) $(`tab-${t}`).addEventListener("click", () => showTab(t));
  document.querySelector("[role=tablist]").addEventListener("keydown", onTabKey);
  $("previous").addEventListener("click", () => showPage(state.page - 1));
  $("next").addEventListener("click", () => showPage(state.page + 1));
  $("back").addEventListener("click", close);
  document.addEventListener("keydown", e => { if (e.key === "Escape" && !e.target.matches("input, select")) { e.preventDefault(); close(); } });
  new ResizeObserver(() => placeMap()).observe($("map-scroll"));
  buildMatrix();
  setZoom(1);
  showTab("matrix");
  filter();
  openFirst();
  state.begun = true;
}

begin();
})();
