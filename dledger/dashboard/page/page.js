// The page: one stream in, SVG and tables out. No library, nothing from elsewhere.

const SPAN_S = 300, LEAST_SPAN_S = 60, MAX_DOTS_PER_S = 6, TRAVEL_MS = 650, STALE_MS = 3000;
const KINDS = {
  AppendEntries: "entries", Heartbeat: "entries", TimeoutNow: "entries", ReadIndexResponse: "answer",
  AppendEntriesResponse: "answer", HeartbeatResponse: "answer", ReadIndexRequest: "answer",
  RequestVote: "vote", RequestVoteResponse: "vote",
};
const $ = (id) => document.getElementById(id);
const svgNS = "http://www.w3.org/2000/svg";
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 30rem)");

const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
const state = { now: null, points: [], events: [], faults: [], dev: false, held: false, mark: null, heard: 0, span: LEAST_SPAN_S, chaos: false };

// ------------------------------------------------------------------ small things

function make(tag, attributes = {}, text = "") {
  const element = document.createElementNS(svgNS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}
function html(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}
const set = (element, attributes) => { for (const [n, v] of Object.entries(attributes)) if (element.getAttribute(n) !== String(v)) element.setAttribute(n, v); };
const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const count = (n) => n == null || n < 0 ? "-" : String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const short = (n) => n == null ? "-" : n >= 10000 ? `${(n / 1000).toFixed(n >= 100000 ? 0 : 1)}k` : n >= 100 || n === 0 ? String(Math.round(n)) : n.toFixed(n >= 10 ? 1 : 2).replace(/\.?0+$/, "");
const ms = (v) => v == null ? "-" : `${short(v)} ms`;
const clock = (t) => new Date(t * 1000).toLocaleTimeString([], { hour12: false });
function ago(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
}
function size(bytes) {
  const units = ["B", "K", "M", "G", "T"];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) { bytes /= 1024; at++; }
  return `${bytes.toFixed(at && bytes < 10 ? 1 : 0)} ${units[at]}`;
}
const roleWords = (node) => {
  const role = { pre_candidate: "asks for votes", candidate: "candidate" }[node.state] || node.state;
  return node.cut ? `${role}, cut off` : role;
};

// ------------------------------------------------------------------ the stream

let source = null;
function connect() {
  source = new EventSource("/events");
  source.addEventListener("full", (message) => {
    const data = JSON.parse(message.data);
    Object.assign(state, { now: data, points: data.points, events: data.events, faults: data.faults, dev: data.dev && token !== "" });
    heard();
    begin();
    draw(true);
  });
  source.addEventListener("now", (message) => {
    const data = JSON.parse(message.data);
    heard();
    state.points.push(...data.points);
    state.events.push(...data.events);
    state.faults = data.faults;
    const oldest = data.t - SPAN_S;
    while (state.points.length && state.points[0].t < oldest) state.points.shift();
    if (state.events.length > 300) state.events.splice(0, state.events.length - 300);
    state.now = data;
    if (!state.held) draw(data.points.length > 0, data.events.length > 0);
  });
  source.onerror = () => stale("the watcher does not answer, trying again");
}
function heard() {
  state.heard = performance.now();
  $("connection").className = "badge live";
  say($("connection"), "live");
}
function stale(text) {
  $("connection").className = "badge stale";
  say($("connection"), text);
}
// A page that nobody sees asks for nothing; the watcher keeps what it misses.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { source.close(); state.heard = 0; }
  else if (source.readyState === EventSource.CLOSED) connect();
});
setInterval(() => { if (state.heard && performance.now() - state.heard > STALE_MS) stale("nothing heard, trying again"); }, 1000);

function begin() {
  document.body.classList.toggle("dev", state.dev);
  $("controls").hidden = !state.dev;
}
function draw(newPoint, newEvents = true) {
  if (!state.now.nodes) return; // the watcher has not looked yet
  drawWords();
  drawRing();
  drawStrip();
  drawTable();
  drawControls();
  if (newPoint) drawCharts();
  if (newEvents) drawEvents();
  $("tabs").hidden = !("broker" in state.now);
  if ("broker" in state.now) drawBroker(state.now.broker);
}

// ------------------------------------------------------------------ words

function drawWords() {
  const now = state.now;
  $("health").className = `dot ${now.health}`;
  say($("words"), now.words);
  const led = now.leader ? `${now.leader} leads term ${now.term}, for ${ago(now.t - now.since)}` : `no leader, term ${count(now.term)}`;
  say($("leader"), `group ${now.group}: ${led}; ${now.committed + 1 > 0 ? count(now.committed + 1) : "no"} entries committed`);
  document.title = `${{ ok: "●", lost: "■" }[now.health] || "▲"} ${now.group} ${now.leader || "no leader"}`;
}

// ------------------------------------------------------------------ the ring

const ring = { shape: "", nodes: new Map(), links: new Map(), places: new Map(), dots: [], due: new Map(), layer: null };

function buildRing(nodes) {
  const svg = $("ring"), radius = nodes.length > 3 ? 115 : 125, body = nodes.length > 5 ? 24 : 31;
  svg.replaceChildren();
  for (const map of [ring.nodes, ring.links, ring.places, ring.due]) map.clear();
  ring.dots = [];
  nodes.forEach((node, i) => {
    const angle = -Math.PI / 2 + 2 * Math.PI * i / nodes.length;
    const far = nodes.length > 1 ? radius : 0;
    ring.places.set(node.id, [200 + 1.25 * far * Math.cos(angle), (nodes.length === 3 ? 180 : 157) + far * Math.sin(angle)]);
  });
  const links = make("g");
  for (let i = 0; i < nodes.length; i++) for (let j = i + 1; j < nodes.length; j++) {
    const [a, b] = [nodes[i].id, nodes[j].id], [x1, y1] = ring.places.get(a), [x2, y2] = ring.places.get(b);
    const line = make("line", { x1, y1, x2, y2, class: "link" });
    const text = make("text", { x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 4, class: "link-rate" });
    links.append(line, text);
    ring.links.set(`${a} ${b}`, { a, b, line, text });
  }
  ring.layer = make("g");
  svg.append(links, ring.layer);
  for (const node of nodes) svg.append(buildNode(node.id, body));
}
function buildNode(id, body) {
  const [x, y] = ring.places.get(id);
  const group = make("g", { transform: `translate(${x} ${y})`, class: "node", tabindex: 0, role: "button" });
  const parts = {
    group, body: make("circle", { r: body, class: "body" }), timer: make("path", { class: "timer" }), size: body + 7,
    name: make("text", { y: 1, class: "name" }, id), term: make("text", { y: 15, class: "term" }),
    role: make("text", { y: body + 23, class: "role" }),
  };
  group.append(parts.body, parts.timer, parts.name, parts.term, parts.role);
  const choose = () => { $("target").value = id; markChosen(); };
  group.addEventListener("click", choose);
  group.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
  ring.nodes.set(id, parts);
  return group;
}
function markChosen() {
  for (const [id, parts] of ring.nodes) parts.group.classList.toggle("chosen", state.dev && $("target").value === id);
}
function drawRing() {
  const nodes = state.now.nodes, shape = nodes.map((n) => n.id).join(" ");
  if (shape !== ring.shape) { ring.shape = shape; buildRing(nodes); }
  const byId = new Map(nodes.map((n) => [n.id, n]));
  for (const node of nodes) drawNode(node, ring.nodes.get(node.id));
  for (const { a, b, line, text } of ring.links.values()) {
    const [one, other] = [byId.get(a), byId.get(b)];
    set(line, { class: one.cut || other.cut ? "link broken" : "link" });
    const rate = total(one.sent, b) + total(other.sent, a);
    say(text, calm.matches && rate ? `${short(rate)}/s` : "");
  }
  markChosen();
}
const total = (sent, to) => Object.values((sent || {})[to] || {}).reduce((sum, n) => sum + n, 0);

function drawNode(node, parts) {
  const look = !node.up && node.state !== "paused" ? "gone" : node.state === "paused" ? "held" : node.state.endsWith("candidate") ? "candidate" : node.state;
  set(parts.group, { class: `node ${look}`, "aria-label": `${node.id}, ${roleWords(node)}, term ${count(node.term)}` });
  say(parts.term, node.term == null ? "" : `term ${node.term}`);
  say(parts.role, roleWords(node));
  parts.role.classList.toggle("bad", look === "gone" || look === "held" || node.cut);
  parts.deadline = node.up && node.election_left_ms >= 0 ? performance.now() + node.election_left_ms : null;
  parts.full = Math.max(2 * (node.election_timeout_ms || 1), 1);
  if (calm.matches) drawTimer(parts);
}
function drawTimer(parts) {
  const left = parts.deadline == null ? 0 : Math.min(Math.max((parts.deadline - performance.now()) / parts.full, 0), 0.999);
  if (left === 0) { set(parts.timer, { d: "" }); return; }
  const angle = 2 * Math.PI * left, r = parts.size;
  set(parts.timer, {
    d: `M0 ${-r}A${r} ${r} 0 ${left > 0.5 ? 1 : 0} 1 ${(r * Math.sin(angle)).toFixed(1)} ${(-r * Math.cos(angle)).toFixed(1)}`,
    class: left < 0.2 ? "timer low" : "timer",
  });
}

// Dots leave as often as the processes counted messages between the last two looks, a few a second at most.
function emit(at, elapsed) {
  for (const node of state.now.nodes) for (const [to, kinds] of Object.entries(node.sent || {})) {
    if (!ring.places.has(to)) continue;
    const rates = {};
    for (const [kind, rate] of Object.entries(kinds)) rates[KINDS[kind] || "entries"] = (rates[KINDS[kind] || "entries"] || 0) + rate;
    for (const [kind, rate] of Object.entries(rates)) {
      const key = `${node.id} ${to} ${kind}`;
      const due = (ring.due.get(key) ?? Math.random()) + Math.min(rate, MAX_DOTS_PER_S) * elapsed / 1000;
      ring.due.set(key, due % 1);
      if (due >= 1) launch(node.id, to, kind, at);
    }
  }
}
function launch(from, to, kind, at) {
  const dot = make("circle", { r: kind === "answer" ? 2.5 : 4, class: `k-${kind}` });
  ring.layer.append(dot);
  ring.dots.push({ dot, from: ring.places.get(from), to: ring.places.get(to), at, shift: kind === "answer" ? -4 : 4 });
}
let lastFrame = 0;
function frame(at) {
  const elapsed = Math.min(at - lastFrame, 100);
  lastFrame = at;
  if (!calm.matches && state.now && state.now.nodes && !state.held && !$("view-group").hidden) {
    for (const parts of ring.nodes.values()) drawTimer(parts);
    if (performance.now() - state.heard < STALE_MS) emit(at, elapsed);
    ring.dots = ring.dots.filter((flying) => {
      const share = (at - flying.at) / TRAVEL_MS;
      if (share >= 1) { flying.dot.remove(); return false; }
      const [x1, y1] = flying.from, [x2, y2] = flying.to, length = Math.hypot(x2 - x1, y2 - y1) || 1;
      const nx = -(y2 - y1) / length * flying.shift, ny = (x2 - x1) / length * flying.shift;
      flying.dot.setAttribute("cx", x1 + (x2 - x1) * share + nx);
      flying.dot.setAttribute("cy", y1 + (y2 - y1) * share + ny);
      return true;
    });
  }
  requestAnimationFrame(frame);
}

// ------------------------------------------------------------------ the log strip

const strip = { shape: "", rows: new Map(), line: null };

function buildStrip(nodes, columns) {
  const svg = $("strip"), cell = 10, left = 30;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${left + columns * cell + 4} ${nodes.length * 24 + 2}`);
  strip.rows.clear();
  nodes.forEach((node, row) => {
    svg.append(make("text", { x: 0, y: row * 24 + 17 }, node.id));
    const cells = [];
    for (let i = 0; i < columns; i++) {
      cells.push(make("rect", { x: left + i * cell + 0.5, y: row * 24 + 4, width: cell - 2, height: 17, rx: 1.5 }));
      svg.append(cells[i]);
    }
    strip.rows.set(node.id, { cells, flashed: { from: 0, end: 0, until: 0 } });
  });
  strip.line = make("path", { class: "commit" });
  svg.append(strip.line);
}
function termAt(tail, index) {
  let term = null;
  for (const [first, runTerm] of tail || []) if (first <= index) term = runTerm;
  return term;
}
function drawStrip() {
  const { nodes, strip: range } = state.now, columns = narrow.matches ? 30 : 60;
  const shape = nodes.map((n) => n.id).join(" ") + columns;
  if (shape !== strip.shape) { strip.shape = shape; buildStrip(nodes, columns); }
  const first = Math.max(range.last - columns + 1, 0), terms = new Set(), words = [];
  let path = "";
  nodes.forEach((node, row) => {
    drawRow(node, strip.rows.get(node.id), first, columns, terms);
    const behind = Math.min(Math.max((node.commit ?? -1) - first + 1, 0), columns);
    path += `${path ? "L" : "M"}${29 + behind * 10} ${row * 24 + 1}L${29 + behind * 10} ${row * 24 + 24}`;
    words.push(`${node.id}: last entry ${count(node.last)}, committed ${count(node.commit)}`);
  });
  set(strip.line, { d: range.last < 0 ? "" : path });
  say($("strip-range"), range.last < 0 ? "empty" : `entries ${count(first)} to ${count(range.last)}`);
  say($("strip-words"), words.join("; "));
  drawTerms([...terms].sort((a, b) => a - b));
}
function drawRow(node, row, first, columns, terms) {
  if (node.flash) row.flashed = { from: node.flash[0], end: node.flash[0] + node.flash[1], until: performance.now() + 1600 };
  for (let i = 0; i < columns; i++) {
    const index = first + i, there = node.last != null && index <= node.last;
    const term = there ? termAt(node.tail, index) : null;
    let look = "cell";
    if (term == null) look = "";
    else {
      terms.add(term);
      look += ` c${term % 8}${index > node.commit ? " open" : ""}${node.up ? "" : " past"}`;
    }
    const { from, end, until } = row.flashed;
    if (index >= from && index < end && performance.now() < until) look = `${look || "cell"} flash`;
    set(row.cells[i], { class: look, opacity: look ? 1 : 0 });
  }
}
function drawTerms(terms) {
  const key = terms.join(" ");
  if ($("strip-terms").dataset.key === key) return;
  $("strip-terms").dataset.key = key;
  $("strip-terms").replaceChildren(...terms.map((term) => {
    const item = html("span"), swatch = make("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
    swatch.append(make("rect", { width: 10, height: 10, class: `c${term % 8}` }));
    item.append(swatch, `term ${term}`);
    return item;
  }));
}

// ------------------------------------------------------------------ charts

const W = 320, H = 96, LEFT = 34, BOTTOM = 14;
const charts = [
  { title: "Entries committed a second", unit: "", series: () => [["", (p) => p.rate, 0]] },
  { title: "From append to commit", unit: " ms", series: () => [["p50", (p) => p.p50, 2], ["p99", (p) => p.p99, 1]] },
  { title: "Entries behind the leader", unit: "", series: () => state.now.nodes.map((n, i) => [n.id, (p) => p.lag[n.id] ?? null, i]) },
  { title: "Disk sync, p99", unit: " ms", series: () => state.now.nodes.map((n, i) => [n.id, (p) => p.fsync[n.id] ?? null, i]) },
];
function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value);
}
function buildCharts() {
  for (const chart of charts) {
    const figure = html("figure", "chart"), caption = html("figcaption"), svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": chart.title });
    chart.now = html("span", "now");
    caption.append(html("b", "", chart.title), chart.now);
    chart.shades = make("g"); chart.lines = make("g");
    chart.top = make("text", { x: LEFT - 4, y: 11, "text-anchor": "end" });
    chart.mark = make("line", { class: "mark", y1: 4, y2: H - BOTTOM });
    chart.from = make("text", { x: LEFT, y: H - 2 });
    svg.append(
      chart.shades, make("line", { x1: LEFT, x2: W, y1: H - BOTTOM, y2: H - BOTTOM, class: "grid" }), make("line", { x1: LEFT, x2: W, y1: 6, y2: 6, class: "grid" }),
      make("text", { x: LEFT - 4, y: H - BOTTOM + 3, "text-anchor": "end" }, "0"), chart.top, chart.from,
      make("text", { x: W, y: H - 2, "text-anchor": "end" }, "now"), chart.lines, chart.mark,
    );
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), share = ((event.clientX - box.left) / box.width * W - LEFT) / (W - LEFT);
      state.mark = share >= 0 && state.now ? state.now.t - state.span * (1 - share) : null;
      drawCharts();
    });
    svg.addEventListener("pointerleave", () => { state.mark = null; drawCharts(); });
    figure.append(caption, svg);
    $("charts").append(figure);
  }
}
const chartX = (t) => LEFT + (W - LEFT) * (1 - (state.now.t - t) / state.span);

// Up to five minutes, in whole minutes: what a young group has done would be a sliver at the right otherwise.
function setSpan() {
  const age = state.points.length ? state.now.t - state.points[0].t : 0;
  state.span = Math.min(Math.max(Math.ceil(age / 60) * 60, LEAST_SPAN_S), SPAN_S);
}

function drawCharts() {
  const marked = state.mark == null ? state.points.at(-1) : state.points.reduce((best, p) => !best || Math.abs(p.t - state.mark) < Math.abs(best.t - state.mark) ? p : best, null);
  setSpan();
  for (const chart of charts) {
    const series = chart.series();
    say(chart.from, `${state.span / 60} min ago`);
    let highest = 0;
    for (const point of state.points) for (const [, value] of series) highest = Math.max(highest, value(point) ?? 0);
    const top = niceTop(highest), y = (v) => H - BOTTOM - (H - BOTTOM - 6) * Math.min(v / top, 1);
    say(chart.top, short(top));
    chart.lines.replaceChildren(...series.map(([, value, colour]) => make("path", { class: `line s${colour % 9}`, d: linePath(value, y) })));
    chart.shades.replaceChildren(...state.faults.map((fault) => {
      const x = Math.max(chartX(fault.began), LEFT), end = chartX(fault.ended ?? state.now.t);
      const shade = make("rect", { x, y: 6, width: Math.max(end - x, 1.2), height: H - BOTTOM - 6, class: `shade ${fault.kind}` });
      shade.append(make("title", {}, fault.node ? `${fault.node} ${fault.kind}` : "no leader"));
      return shade;
    }));
    set(chart.mark, state.mark == null ? { opacity: 0 } : { opacity: 1, x1: chartX(state.mark), x2: chartX(state.mark) });
    chart.now.replaceChildren(...(state.mark == null ? [] : [html("span", "", clock(state.mark))]), ...series.map(([name, value, colour]) => {
      const item = html("i"), v = marked ? value(marked) : null;
      if (name) item.append(html("span", `s${colour % 9}`, `${name} `));
      item.append(v == null ? "-" : short(v) + chart.unit);
      return item;
    }));
  }
}
function linePath(value, y) {
  let path = "", last = null;
  for (const point of state.points) {
    const v = value(point);
    if (v == null) { last = null; continue; }
    path += `${last != null && point.t - last < 4 ? "L" : "M"}${chartX(point.t).toFixed(1)} ${y(v).toFixed(1)}`;
    if (last == null) path += "h.1";
    last = point.t;
  }
  return path;
}

// ------------------------------------------------------------------ events

function drawEvents() {
  const wanted = $("filter").value.trim().toLowerCase(), every = $("minor").checked;
  const shown = state.events.filter((e) => (every || e.kind !== "minor") && (!wanted || e.text.toLowerCase().includes(wanted))).sort((a, b) => b.t - a.t || b.number - a.number).slice(0, 150);
  $("events").replaceChildren(...shown.map((event) => {
    const item = html("li"), button = html("button", event.kind), time = html("time", "", clock(event.t));
    button.type = "button";
    button.append(time, event.text);
    button.addEventListener("click", () => { state.mark = event.t; drawCharts(); });
    item.append(button);
    return item;
  }));
}

// ------------------------------------------------------------------ tables

function fill(table, columns, rows) {
  const head = html("tr");
  for (const [name, , number] of columns) head.append(html("th", number ? "number" : "", name));
  const body = rows.map((row) => {
    const line = html("tr", row.look || "");
    for (const [, value, number] of columns) line.append(html("td", number ? "number" : "", value(row)));
    return line;
  });
  table.replaceChildren(head, ...body);
}
function drawTable() {
  const leader = state.now.leader;
  const rows = state.now.nodes.map((node) => ({ ...node, look: node.up ? (node.id === leader ? "leads" : "") : "down" }));
  fill($("table"), [
    ["node", (n) => n.id], ["address", (n) => n.address], ["role", roleWords], ["term", (n) => count(n.term), 1],
    ["last", (n) => count(n.last), 1], ["committed", (n) => count(n.commit), 1],
    ["lag", (n) => n.up && n.id !== leader ? count(n.lag) : "-", 1], ["sync p99", (n) => ms(n.fsync_ms), 1],
    ["disk", (n) => n.up ? size(n.disk) : "-", 1], ["up", (n) => n.up ? ago(n.uptime_s) : "-", 1],
    ["pid", (n) => n.up ? String(n.pid) : "-", 1], ["note", (n) => n.note || ""],
  ], rows);
}
function drawBroker(broker) {
  say($("broker-words"), broker.words);
  fill($("brokers"), [
    ["broker", (b) => b.name], ["BID", (b) => String(b.id), 1], ["role", (b) => b.id === 0 ? "master" : "slave"], ["address", (b) => b.address],
    ["in/s", (b) => short(b.in_rate), 1], ["out/s", (b) => short(b.out_rate), 1], ["note", (b) => b.note],
  ], broker.brokers.map((b) => ({ ...b, look: b.up ? (b.id === 0 ? "leads" : "") : "down" })));
  fill($("queues"), [
    ["topic", (q) => q.topic], ["broker", (q) => q.broker], ["queue", (q) => String(q.queue), 1], ["min", (q) => count(q.min), 1],
    ["max", (q) => count(q.max), 1], ["in/s", (q) => q.rate == null ? "-" : short(q.rate), 1],
  ], broker.queues);
  fill($("consumers"), [
    ["group", (c) => c.group], ["topic", (c) => c.topic], ["broker", (c) => c.broker], ["queue", (c) => String(c.queue), 1],
    ["consumed up to", (c) => count(c.offset), 1], ["lag", (c) => count(c.lag), 1],
  ], broker.consumers);
}

// ------------------------------------------------------------------ actions

function drawControls() {
  const ids = ["leader", ...state.now.nodes.map((n) => n.id)], target = $("target");
  if ([...target.options].map((o) => o.value).join(" ") !== ids.join(" ")) {
    const chosen = target.value;
    target.replaceChildren(...ids.map((id) => { const option = html("option", "", id); option.value = id; return option; }));
    if (ids.includes(chosen)) target.value = chosen;
  }
  const { chaos, chaos_left_s: left, verdict } = state.now, words = $("chaos");
  for (const button of document.querySelectorAll("[data-act]")) button.disabled = Boolean(chaos);
  say(words, !chaos ? "30 s of chaos" : left > 0 ? `${left} s of chaos left` : "healing, judging …");
  if (state.chaos && !chaos && verdict) tell(verdict, !verdict.startsWith("PASS"));
  state.chaos = Boolean(chaos);
  $("report").hidden = !state.now.report;
}
async function act(action, node = "", text = "") {
  if (!state.dev) return;
  tell(`${action} …`);
  try {
    const answer = await fetch("/act", { method: "POST", headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" }, body: JSON.stringify({ action, node, text }) });
    const row = await answer.json();
    tell(row.done || row.error, Boolean(row.error));
  } catch (error) {
    tell(`${action}: ${error.message}`, true);
  }
}
function tell(text, failed = false) {
  $("outcome").className = failed ? "failed" : "";
  say($("outcome"), text);
}
function hold() {
  state.held = !state.held;
  $("paused").hidden = !state.held;
  if (!state.held && state.now) draw(true);
}
function show(view) {
  for (const name of ["group", "broker"]) {
    $(`view-${name}`).hidden = name !== view;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === view));
  }
}
function wire() {
  $("append").addEventListener("submit", (event) => { event.preventDefault(); act("append", "", $("text").value); });
  for (const button of document.querySelectorAll("[data-act]")) {
    button.addEventListener("click", () => act(button.dataset.act, ["heal", "chaos"].includes(button.dataset.act) ? "" : $("target").value));
  }
  $("target").addEventListener("change", markChosen);
  $("filter").addEventListener("input", drawEvents);
  $("minor").addEventListener("change", drawEvents);
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("tab-group").addEventListener("click", () => show("group"));
  $("tab-broker").addEventListener("click", () => show("broker"));
  $("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  const keys = { " ": hold, c: () => act("append", "", $("text").value), k: () => act("kill", "leader"), h: () => act("heal"), x: () => act("chaos"), "?": () => $("help").showModal(), 1: () => show("group"), 2: () => { if (!$("tabs").hidden) show("broker"); } };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, dialog") || (event.key === " " && event.target.closest("button, a"));
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}
buildCharts();
wire();
connect();
requestAnimationFrame(frame);
