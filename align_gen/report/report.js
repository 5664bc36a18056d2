"use strict";
// Draws the report. All it shows comes from the JSON block; text only ever enters the page as text.
// What the reader chose lives in `state` and, by the same names, in the URL's hash; every change goes through `go`.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAGE = 48; // pictures drawn at a time
const BINS = 16; // about as many bars a histogram
const BLINK = 800; // milliseconds a picture; slower than 3 flashes a second by far
const SIDES = DATA.paired ? ["before", "after"] : ["after"];
const NAMES = DATA.names; // what the page calls the two sides
const NOUN = DATA.paired ? "pair" : "picture";

const byId = (id) => document.getElementById(id);
const options = (id) => [...byId(id).options].map((option) => option.value);
const ORDERS = options("order");
const VIEWS = DATA.paired ? ["slider", "side", "blink"] : ["single"];
const START = { order: ORDERS[0], column: 0, view: VIEWS[0], filter: null, card: null };
const state = { ...START };

// --- small helpers ---------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function number(value, digits, signed = false) {
  if (value === null) return "–";
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value < 0 ? "−" : signed ? "+" : "") + text;
}

const score = (item, side, column) => item[side].scores[column];
const count = (n, noun = NOUN) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

const roleOf = (role) => (role ? element("span", { class: `role ${role.replace(" ", "-")}` }, role) : null);

function change(item, column) {
  const [before, after] = [item.before.scores[column], item.after.scores[column]];
  return before === null || after === null ? null : after - before;
}

// --- which pictures, in which order ----------------------------------------------------------------------------------

const OWN_ORDERS = ["disagreement", "unsure"]; // of no column
const RANKS = {
  gain: (item) => [change(item, state.column), -1],
  loss: (item) => [change(item, state.column), 1],
  disagreement: (item) => [item.disagreement, -1],
  unsure: (item) => [item.uncertainty, -1],
  high: (item) => [score(item, "after", state.column), -1],
  low: (item) => [score(item, "after", state.column), 1],
};

// The data come in random order already. Ties keep it; what has no number goes last.
function ordered(items) {
  const rank = RANKS[state.order];
  if (!rank) return items;
  const ranked = items.map((item) => [item, ...rank(item)]);
  ranked.sort(([, a, sign], [, b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * (a - b)));
  return ranked.map(([item]) => item);
}

// Edges of bars at round numbers; bar k holds edges[k] <= value < edges[k + 1].
function edgesOf(values) {
  if (!values.length) return [];
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  const size = Math.max(Math.abs(low), Math.abs(high));
  const raw = high > low ? Math.max((high - low) / BINS, size * 1e-9) : size / 10 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= raw) ?? 10);
  let k = Math.floor(low / step);
  if (k * step > low) k -= 1;
  const edges = [k * step];
  while (edges[edges.length - 1] <= high) edges.push((k += 1) * step);
  return edges;
}

const EDGES = DATA.columns.map((_, column) =>
  edgesOf(SIDES.flatMap((side) => DATA.items.map((item) => score(item, side, column))).filter((v) => v !== null)));

// Edges are round, so that they need fewer decimals than scores.
function edgeText(column, k) {
  const step = EDGES[column][1] - EDGES[column][0];
  return number(EDGES[column][k], Math.max(0, Math.min(12, Math.ceil(-Math.log10(step) - 1e-6))));
}

const barText = ({ bar, column }) => `${edgeText(column, bar)} to ${edgeText(column, bar + 1)}`;

function inBar(item, { side, bar, column }) {
  const value = score(item, side, column);
  return value !== null && EDGES[column][bar] <= value && value < EDGES[column][bar + 1];
}

const chosen = () => ordered(state.filter ? DATA.items.filter((item) => inBar(item, state.filter)) : DATA.items);

// --- state and the URL's hash ----------------------------------------------------------------------------------------

const filterText = ({ side, bar, column }) => `${side}:${bar}:${DATA.columns[column].name}`;

function parseFilter(text) {
  const [, side, bar, name] = /^(\w+):(\d+):(.*)$/s.exec(text ?? "") ?? [];
  const column = DATA.columns.findIndex((entry) => entry.name === name);
  const known = SIDES.includes(side) && column >= 0 && Number(bar) < EDGES[column].length - 1;
  return known ? { side, bar: Number(bar), column } : null;
}

// Whatever the hash does not say, or says wrongly, is as at the start.
function readHash() {
  const said = new URLSearchParams(location.hash.slice(1));
  const one = (name, known, otherwise) => (known.includes(said.get(name)) ? said.get(name) : otherwise);
  const column = DATA.columns.findIndex((entry) => entry.name === said.get("column"));
  const card = DATA.items.find((item) => String(item.id) === said.get("card"));
  Object.assign(state, {
    order: one("order", ORDERS, START.order),
    view: one("view", VIEWS, START.view),
    column: Math.max(column, 0),
    filter: parseFilter(said.get("filter")),
    card: card ? card.id : null,
  });
}

function writeHash(push) {
  const said = new URLSearchParams();
  if (state.order !== START.order) said.set("order", state.order);
  if (state.column !== START.column) said.set("column", DATA.columns[state.column].name);
  if (state.view !== START.view) said.set("view", state.view);
  if (state.filter) said.set("filter", filterText(state.filter));
  if (state.card !== null) said.set("card", state.card);
  const hash = `#${said}`;
  if (hash === (location.hash || "#")) return;
  history[push ? "pushState" : "replaceState"](null, "", hash); // "back" closes a card, and skips the rest
}

function go(changes) {
  const opens = changes.card !== undefined && changes.card !== null && state.card === null;
  Object.assign(state, changes);
  writeHash(opens);
  draw();
}

// --- one pair of pictures --------------------------------------------------------------------------------------------

function picture(item, side) {
  const { picture, reason } = item[side];
  const label = DATA.paired ? element("span", { class: "side" }, NAMES[side]) : null;
  const shown = picture
    ? element("img", { src: `data:${picture}`, alt: `${DATA.paired ? NAMES[side] : "picture"}: ${item.prompt}`, draggable: "false" })
    : element("span", { class: "missing" }, element("b", {}, "No picture"), ` ${reason}`);
  if (picture) shown.addEventListener("load", () => shown.classList.toggle("small", shown.naturalWidth <= 64));
  return element("span", { class: `picture ${side}` }, shown, label);
}

// The views differ in style alone. A pointer that moves over the pictures moves their own slider.
function pictures(item) {
  const box = element("span", { class: "pictures" }, ...SIDES.map((side) => picture(item, side)));
  if (!DATA.paired) return box;
  box.append(element("span", { class: "handle", "aria-hidden": "true" }));
  box.addEventListener("pointermove", (event) => {
    const { left, width } = box.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
    box.style.setProperty("--split", `${100 * share}%`);
  });
  return box;
}

function figures(item, column) {
  const { name, digits } = DATA.columns[column];
  if (!DATA.paired) return [name, number(score(item, "after", column), digits), "same"];
  const value = change(item, column);
  const direction = value === null ? "same" : value > 0 ? "up" : value < 0 ? "down" : "same";
  const arrow = { up: "▲ ", down: "▼ ", same: "" }[direction];
  return [name, arrow + number(value, digits, true), direction];
}

// --- the grid --------------------------------------------------------------------------------------------------------

let list = []; // what is chosen, in order
let here = 0; // the place in it that the keyboard is at
let drawnFor = null;

function tile(item, place) {
  const scores = DATA.columns.map((_, column) => figures(item, column));
  const button = element("button", {
    type: "button",
    class: "pair",
    "data-id": item.id,
    tabindex: place === here ? "0" : "-1",
    "aria-haspopup": "dialog",
    "aria-label": `${place + 1} of ${list.length}: ${item.prompt || item.after.file}, ${scores.map((s) => s.slice(0, 2).join(" ")).join(", ")}`,
    click: () => go({ card: item.id }),
    focus: () => moveTab(place),
  },
  pictures(item),
  element("span", { class: "prompt", dir: "auto" }, item.prompt || item.after.file),
  element("span", { class: "deltas" }, ...scores.map(([name, text, direction], column) =>
    element("span", { class: `delta ${direction}${column === state.column ? " key" : ""}` },
      element("span", {}, name), element("span", {}, text)))),
  element("span", { class: "place" }, `${place + 1} of ${list.length.toLocaleString("en")}`));
  return element("li", {}, button);
}

const tiles = () => byId("grid").querySelectorAll(".pair");

function moveTab(place) {
  tiles()[here]?.setAttribute("tabindex", "-1");
  here = place;
  tiles()[here]?.setAttribute("tabindex", "0");
}

function addPage() {
  const from = tiles().length;
  const page = list.slice(from, from + PAGE);
  byId("grid").append(...page.map((item, k) => tile(item, from + k)));
  const left = list.length - from - page.length;
  byId("more").hidden = left === 0;
  byId("more").textContent = `Show ${Math.min(left, PAGE)} more of ${left.toLocaleString("en")}`;
  drawStatus(from + page.length);
}

function drawStatus(drawn) {
  const of = DATA.items.length;
  const limited = DATA.total > of ? `; drawn at random from ${DATA.total.toLocaleString("en")}` : "";
  const order = byId("order").selectedOptions[0].textContent;
  const by = RANKS[state.order] && !OWN_ORDERS.includes(state.order) ? ` by ${DATA.columns[state.column].name}` : "";
  const matching = count(list.length, list.length < of ? `matching ${NOUN}` : NOUN);
  byId("status").textContent = `Showing ${drawn.toLocaleString("en")} of ${matching}, order: ${order}${by}${limited}`;
}

function drawGrid() {
  const key = JSON.stringify([state.order, state.column, state.filter]);
  if (key === drawnFor) return;
  drawnFor = key;
  list = chosen();
  here = 0;
  byId("grid").replaceChildren();
  byId("empty").hidden = list.length > 0;
  addPage();
}

function reach(place) {
  while (tiles().length <= place) addPage();
  moveTab(place);
}

function focusOn(place) {
  if (place < 0 || place >= list.length) return;
  reach(place);
  tiles()[place].focus();
  tiles()[place].scrollIntoView({ block: "nearest" });
}

// Tiles in a row share their top edge.
function perRow() {
  const tops = [...tiles()].map((node) => node.getBoundingClientRect().top);
  const next = tops.findIndex((top) => top > tops[0] + 1);
  return next < 0 ? tops.length : next;
}

// --- the toolbar -----------------------------------------------------------------------------------------------------

function drawToolbar() {
  byId("order").value = state.order;
  byId("column").value = String(state.column);
  for (const button of document.querySelectorAll("[data-view]")) {
    if (button.tagName === "BUTTON") button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
  }
  document.documentElement.dataset.show = state.view;
  byId("explain").hidden = state.order !== "disagreement";
  byId("filter").hidden = state.filter === null;
  if (state.filter) {
    const { side, column } = state.filter;
    const found = DATA.items.filter((item) => inBar(item, state.filter)).length;
    const which = DATA.paired ? `${DATA.columns[column].name} ${NAMES[side]}` : DATA.columns[column].name;
    byId("filter-text").textContent = `Filter: ${which} from ${barText(state.filter)}, ${found} of ${count(DATA.items.length)}`;
  }
  drawBlink();
}

// --- blinking: one clock for all pairs; it stands still where less motion is preferred -------------------------------

const calm = matchMedia("(prefers-reduced-motion: reduce)");
let paused = calm.matches;

function drawBlink() {
  if (!DATA.paired) return;
  const blinks = state.view === "blink";
  byId("split-label").hidden = state.view !== "slider";
  byId("pause").hidden = byId("flip").hidden = !blinks;
  byId("pause").replaceChildren(paused ? "Play " : "Pause ", element("kbd", {}, "p"));
}

function flip() {
  const root = document.documentElement.dataset;
  root.phase = root.phase === "after" ? "before" : "after";
}

function pause(value) {
  paused = value;
  drawBlink();
}

// --- histograms ------------------------------------------------------------------------------------------------------

function histogram(column) {
  const { name, role } = DATA.columns[column];
  const edges = EDGES[column];
  const counts = Object.fromEntries(SIDES.map((side) => [side, edges.slice(1).map((_, bar) =>
    DATA.items.filter((item) => inBar(item, { side, bar, column })).length)]));
  const most = Math.max(1, ...Object.values(counts).flat());
  const rows = SIDES.map((side) => element("div", { class: `bars ${side}`, role: "group", "aria-label": DATA.paired ? `${name}, ${NAMES[side]}` : name },
    ...counts[side].map((n, bar) => barOf({ side, bar, column }, n, most)),
    DATA.paired ? element("span", { class: "side" }, NAMES[side]) : null));
  for (const row of rows) row.querySelector("button")?.setAttribute("tabindex", "0");
  const ends = edges.length ? [0, edges.length - 1] : [];
  return element("figure", { class: "histogram" },
    element("figcaption", {}, element("b", {}, name), roleOf(role)),
    ...rows,
    element("div", { class: "ends", "aria-hidden": "true" }, ...ends.map((k) => element("span", {}, edgeText(column, k)))));
}

function barOf(filter, n, most) {
  const { side, bar, column } = filter;
  if (n === 0) return element("span", { class: "bar" });
  const [low, high] = [bar, bar + 1].map((k) => EDGES[column][k]);
  const label = `${barText(filter)}: ${count(n)}`;
  const fill = element("span", { class: "fill" });
  fill.style.height = `${(100 * n) / most}%`;
  return element("button", {
    type: "button", class: "bar", tabindex: "-1", title: label, "aria-label": DATA.paired ? `${NAMES[side]} ${label}` : label, "aria-pressed": "false",
    "data-filter": filterText(filter), "data-low": low, "data-high": high,
    click: () => go({ filter: state.filter && filterText(state.filter) === filterText(filter) ? null : filter }),
  }, fill);
}

function drawBars() {
  const pressed = state.filter && filterText(state.filter);
  byId("histograms").classList.toggle("filtered", pressed !== null);
  for (const bar of document.querySelectorAll("button.bar")) {
    bar.setAttribute("aria-pressed", String(bar.dataset.filter === pressed));
  }
}

function moveAmongBars(bar, by) {
  const bars = [...bar.parentElement.querySelectorAll("button.bar")];
  const next = bars[bars.indexOf(bar) + by];
  if (!next) return;
  bar.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}

// --- run curves ------------------------------------------------------------------------------------------------------

const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3
  ? value.toExponential(1) : String(Number(value.toPrecision(3)))).replace("-", "−");

function curve(name, points) {
  const [W, H] = [300, 84];
  const values = points.map(([, value]) => value);
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const [first, last] = [points[0], points[points.length - 1]];
  const x = (step) => 4 + ((W - 8) * (step - first[0])) / (last[0] - first[0]);
  const y = (value) => (high === low ? H / 2 : 6 + ((H - 12) * (high - value)) / (high - low));
  const role = DATA.columns.find((column) => name.split("/").includes(column.name))?.role;
  const readout = element("span", { class: "readout" });
  const dot = element("svg:circle", { class: "dot", r: 3.5 });
  const line = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const drawing = element("svg:svg", {
    viewBox: `0 0 ${W} ${H}`, role: "img",
    "aria-label": `${name}: ${short(first[1])} at step ${first[0]}, ${short(last[1])} at step ${last[0]}, between ${short(low)} and ${short(high)}`,
  },
  ...[low, high].map((edge) => element("svg:line", { class: "axis", x1: 0, x2: W, y1: y(edge), y2: y(edge) })),
  element("svg:polyline", { class: "line", points: line }), dot);

  function point([step, value]) {
    dot.setAttribute("cx", x(step));
    dot.setAttribute("cy", y(value));
    readout.textContent = `${short(value)} at step ${step}`;
  }
  point(last);
  drawing.addEventListener("pointermove", (event) => {
    const { left, width } = drawing.getBoundingClientRect();
    const at = ((event.clientX - left) / width) * W;
    point(points.reduce((best, next) => (Math.abs(x(next[0]) - at) < Math.abs(x(best[0]) - at) ? next : best)));
  });
  drawing.addEventListener("pointerleave", () => point(last));
  return element("figure", { class: `curve ${(role ?? "").replace(" ", "-")}`, "data-name": name },
    element("figcaption", {}, element("b", {}, name), " ", readout),
    drawing,
    element("div", { class: "ends", "aria-hidden": "true" },
      element("span", {}, `${short(low)} to ${short(high)}`), element("span", {}, `steps ${first[0]} to ${last[0]}`)));
}

// Rewards and held-out scores stand in the open, the ones that were judged first; what explains them is folded away.
function drawCurves() {
  if (!byId("run")) return;
  const open = (name) => /^(eval|reward)\//.test(name) && !name.endsWith("std");
  const rank = (name) => (name.startsWith("eval/") ? 0 : 1);
  const names = Object.keys(DATA.curves).sort((a, b) => rank(a) - rank(b));
  const [main, other] = [names.filter(open), names.filter((name) => !open(name))];
  const figuresOf = (some) => some.map((name) => curve(name, DATA.curves[name]));
  byId("curves").replaceChildren(...figuresOf(main));
  byId("other-curves").hidden = other.length === 0;
  byId("other-curves").open = main.length === 0;
  byId("other-curves").querySelector("div").replaceChildren(...figuresOf(other));
}

// --- the card --------------------------------------------------------------------------------------------------------

function scoreTable(item) {
  const head = DATA.paired ? ["", NAMES.before, NAMES.after, "change"] : ["", "score"];
  const rows = DATA.columns.map(({ name, role, digits }, column) => {
    const values = SIDES.map((side) => number(score(item, side, column), digits));
    const cells = values.map((text) => element("td", {}, text));
    if (DATA.paired) {
      const [, text, direction] = figures(item, column);
      cells.push(element("td", { class: `delta ${direction}` }, text));
    }
    return element("tr", {}, element("th", { scope: "row" }, name, " ", roleOf(role)), ...cells);
  });
  return element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows));
}

function details(item) {
  const files = SIDES.map((side) => item[side].file).filter((name, k, all) => all.indexOf(name) === k);
  const rows = [["seed", item.seed], ["file", files.join(" → ")], ...Object.entries(item.more)];
  if (item.disagreement !== undefined) rows.push(["disagreement", item.disagreement === null ? "–" : `${number(item.disagreement, 2, true)} std`]);
  if (item.uncertainty !== undefined) rows.push(["uncertainty", item.uncertainty === null ? "–" : `± ${item.uncertainty.toPrecision(3)}`]);
  for (const side of SIDES) if (item[side].reason) rows.push([DATA.paired ? `${NAMES[side]}, unreadable` : "unreadable", item[side].reason]);
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("dl", {}, ...known.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", { dir: "auto" }, String(value)))));
}

async function copy(text, button) {
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  if (!done) getSelection().selectAllChildren(byId("command")); // then the reader's own copy key does it
  button.textContent = done ? "Copied" : "Selected";
}

function commandOf(item) {
  if (!item.command && !item.note) return null;
  const title = element("h3", {}, DATA.paired ? "Make the second picture again" : "Make it again");
  const note = item.note ? [element("p", { class: "note" }, item.note)] : [];
  if (!item.command) return element("div", { class: "command" }, title, ...note);
  const button = element("button", { type: "button", id: "copy", class: "quiet", "aria-live": "polite" }, "Copy");
  button.addEventListener("click", () => copy(item.command, button));
  return element("div", { class: "command" }, title, button,
    element("pre", { id: "command", tabindex: "0", "aria-label": "command" }, item.command), ...note);
}

function drawCard() {
  const dialog = byId("card");
  const item = DATA.items.find((entry) => entry.id === state.card);
  if (!item) {
    if (dialog.open) dialog.close();
    return;
  }
  const place = list.indexOf(item);
  if (place >= 0) reach(place); // so that the keyboard returns to it
  const held = dialog.contains(document.activeElement) ? document.activeElement.className : null;
  const step = (by, label, text) => element("button", {
    type: "button", class: `quiet ${label}`, "aria-label": label, click: () => moveCard(by),
    disabled: list[place + by] && place >= 0 ? null : "",
  }, text);
  dialog.replaceChildren(
    element("div", { class: "bar-top" },
      step(-1, "previous", "←"), step(1, "next", "→"),
      element("span", { class: "place" }, place < 0 ? "outside the filter" : `${place + 1} of ${list.length.toLocaleString("en")}`),
      element("button", { type: "button", class: "quiet close", autofocus: "", click: () => dialog.close() }, "Close ", element("kbd", {}, "Esc"))),
    element("div", { class: "card-body" },
      pictures(item),
      element("div", { class: "about" },
        element("h2", { id: "card-title", dir: "auto" }, item.prompt || item.after.file),
        scoreTable(item), details(item))),
    ...[commandOf(item)].filter(Boolean));
  if (!dialog.open) dialog.showModal();
  else if (held) [...dialog.querySelectorAll("button:enabled")].find((button) => button.className === held)?.focus();
}

function moveCard(by) {
  const next = list[list.findIndex((item) => item.id === state.card) + by];
  if (next) go({ card: next.id });
}

// Closed by the reader: the hash follows, and the keyboard goes to the last picture shown, not to the first opened.
function afterClose() {
  const place = list.findIndex((item) => item.id === state.card);
  if (state.card !== null) go({ card: null });
  focusOn(place);
}

// --- keyboard --------------------------------------------------------------------------------------------------------

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (byId("keys").open) return;
  let used = true;
  if (state.card !== null && by) moveCard(by);
  else if (event.target.matches("button.bar") && by) moveAmongBars(event.target, by);
  else if (state.card === null && by) focusOn(event.target.matches(".pair") ? here + by : here);
  else if (event.target.matches(".pair") && event.key === "ArrowDown") focusOn(Math.min(here + perRow(), list.length - 1));
  else if (event.target.matches(".pair") && event.key === "ArrowUp") focusOn(Math.max(here - perRow(), 0));
  else if (VIEWS.length > 1 && "123".includes(event.key)) go({ view: VIEWS[event.key - 1] });
  else if (event.key === "o") go({ order: ORDERS[(ORDERS.indexOf(state.order) + 1) % ORDERS.length] });
  else if (event.key === "c") go({ filter: null });
  else if (event.key === "p" && state.view === "blink") pause(!paused);
  else if (event.key === "f" && state.view === "blink") { pause(true); flip(); }
  else if (event.key === "?") byId("keys").showModal();
  else used = false;
  if (used) event.preventDefault();
}

// --- all of it -------------------------------------------------------------------------------------------------------

function draw() {
  drawToolbar();
  drawBars();
  drawGrid();
  drawCard();
}

function listen() {
  byId("order").addEventListener("change", (event) => go({ order: event.target.value }));
  byId("column").addEventListener("change", (event) => {
    const order = ["random", ...OWN_ORDERS].includes(state.order) ? ORDERS[1] : state.order; // a column asks to be sorted by
    go({ column: Number(event.target.value), order });
  });
  for (const button of document.querySelectorAll("button[data-view]")) {
    button.addEventListener("click", () => go({ view: button.dataset.view }));
  }
  byId("clear").addEventListener("click", () => go({ filter: null }));
  byId("more").addEventListener("click", () => { const first = tiles().length; addPage(); focusOn(first); });
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("card").addEventListener("close", afterClose);
  for (const dialog of document.querySelectorAll("dialog")) { // a click beside it closes it
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  for (const link of document.querySelectorAll("nav a")) { // the hash is kept for the state
    link.addEventListener("click", (event) => { event.preventDefault(); document.querySelector(link.hash).scrollIntoView(); });
  }
  if (DATA.paired) {
    byId("split").addEventListener("input", (event) => {
      for (const box of document.querySelectorAll(".pictures")) box.style.setProperty("--split", `${event.target.value}%`);
    });
    byId("pause").addEventListener("click", () => pause(!paused));
    byId("flip").addEventListener("click", () => { pause(true); flip(); });
    calm.addEventListener("change", () => pause(calm.matches));
    setInterval(() => { if (state.view === "blink" && !paused) flip(); }, BLINK);
  }
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", () => { readHash(); draw(); });
}

document.documentElement.dataset.phase = "before";
byId("histograms").replaceChildren(...DATA.columns.map((_, column) => histogram(column)));
drawCurves();
listen();
readHash();
draw();
