// Draws what the server sends each second. Nothing is kept beyond what the server keeps.
"use strict";

const MAX_GALAXIES = 2000, MAX_ROWS = 50, MAX_HISTORY = 600, N_NEWEST = 12;
const NAMES = {
  log_mstar_surviving: "log M★ [M☉]", log_sfr_1gyr: "log SFR [M☉/yr]",
  t50: "half formed [Gyr ago]", a_v: "A<sub>V</sub> [mag]",
};
const SHORT = {
  log_mstar_surviving: "log M★", log_sfr_1gyr: "log SFR", t50: "t<sub>50</sub>", a_v: "A<sub>V</sub>",
};
const at = (id) => document.getElementById(id);
const state = { history: [], galaxies: [], numbers: null };
let opened = null;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const count = (n) => Math.round(n).toLocaleString("en");

function latencies(median, most) {
  if (median === null) return "–";
  const [unit, name] = most < 120 ? [1, "s"] : most < 7200 ? [60, "min"] : [3600, "h"];
  const digits = most / unit < 10 ? 2 : 0;
  return `${(median / unit).toFixed(digits)} / ${(most / unit).toFixed(digits)} ${name}`;
}

const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
const signed = (value, digits) => (value < 0 ? "" : "+") + fixed(value, digits);

function withErrors(interval) {
  if (!interval) return "–";
  const [low, mid, high] = interval;
  return `${fixed(mid, 2)} <small>${signed(high - mid, 2)} −${fixed(mid - low, 2)}</small>`;
}

function layout(extra) {
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), automargin: true };
  const { xaxis, yaxis, ...rest } = extra;
  return {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", showlegend: false,
    font: { color: color("--text"), size: 13 }, margin: { l: 50, r: 10, t: 8, b: 42 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}
const CONFIG = { displayModeBar: false, responsive: true };

function drawPlane() {
  const fitted = state.galaxies.filter((g) => g.mass && g.sfr);
  at("plane").hidden = fitted.length === 0;
  at("empty").hidden = fitted.length > 0;
  if (!fitted.length) return;
  const newest = fitted.slice(-N_NEWEST);
  const bars = (key) => ({
    type: "data", symmetric: false, thickness: 1.2, width: 0,
    array: newest.map((g) => g[key][2] - g[key][1]),
    arrayminus: newest.map((g) => g[key][1] - g[key][0]),
  });
  const points = (galaxies, marker) => ({
    type: "scatter", mode: "markers", marker,
    x: galaxies.map((g) => g.mass[1]), y: galaxies.map((g) => g.sfr[1]),
    text: galaxies.map((g) => `${g.name}<br>z = ${g.z.toFixed(4)}`),
    customdata: galaxies.map((g) => g.n), hovertemplate: "%{text}<extra></extra>",
  });
  Plotly.react("plane", [
    points(fitted, { size: 5, color: color("--main"), opacity: 0.6 }),
    { ...points(newest, { size: 8, color: color("--accent") }),
      error_x: bars("mass"), error_y: bars("sfr") },
  ], layout({
    xaxis: { title: { text: "log surviving mass [M☉]" } },
    yaxis: { title: { text: "log SFR over 1 Gyr [M☉/yr]" } },
    uirevision: "plane",
  }), CONFIG);
  if (!drawPlane.listens) {
    at("plane").on("plotly_click", (event) => openGalaxy(event.points[0].customdata));
    drawPlane.listens = true;
  }
}

function drawHistory() {
  Plotly.react("history", [{
    type: "scatter", mode: "lines", line: { color: color("--main"), width: 2 },
    x: state.history.map((h) => new Date(1000 * h[0])), y: state.history.map((h) => h[1]),
    hovertemplate: "%{y:.1f} per second<extra></extra>",
  }], layout({ yaxis: { rangemode: "tozero" }, xaxis: { nticks: 4, ticks: "outside", tickcolor: color("--line") } }), CONFIG);
}

function drawFlags() {
  const reasons = { ...state.numbers.flags };
  for (const [status, n] of Object.entries(state.numbers.statuses))
    if (status !== "OK" && status !== "OUT_OF_SUPPORT") reasons[status] = n;
  const bars = Object.entries(reasons).filter(([, n]) => n > 0)
    .sort((a, b) => a[1] - b[1]).slice(-8);
  at("flags").hidden = bars.length === 0;
  at("no-flags").hidden = bars.length > 0;
  if (!bars.length) return;
  at("flags").style.height = "auto";
  Plotly.react("flags", [{
    type: "bar", orientation: "h", marker: { color: color("--main") },
    x: bars.map((b) => b[1]), y: bars.map((b) => b[0]), text: bars.map((b) => count(b[1])),
    textposition: "outside", cliponaxis: false, hoverinfo: "none",
  }], layout({
    xaxis: { showticklabels: false, showgrid: false, range: [0, 1.25 * bars.at(-1)[1]] },
    yaxis: { dtick: 1, showgrid: false, ticksuffix: " " }, height: 24 * bars.length + 16, margin: { l: 10, r: 10, t: 4, b: 8 },
  }), CONFIG);
}

function cell(html, name) {
  const td = document.createElement("td");
  if (name) td.dataset.name = name;
  td.innerHTML = html;
  return td;
}

function row(galaxy) {
  const tr = document.createElement("tr");
  const name = cell("");
  const label = document.createElement(galaxy.mass ? "button" : "span");
  label.textContent = galaxy.name;
  label.dataset.galaxy = galaxy.n;
  name.append(label);
  const status = cell("");
  status.className = "reasons";
  const doubt = galaxy.trusted === false ? ["doubted"] : [];
  const reasons = galaxy.reasons.filter((reason) => reason !== galaxy.status.toLowerCase());
  status.textContent = [galaxy.status, ...reasons, ...doubt].join(", ");
  const known = galaxy.ra !== null && galaxy.dec !== null;
  tr.append(name,
    cell(known ? `${fixed(galaxy.ra, 4)}, ${signed(galaxy.dec, 4)}` : "–"),
    cell(galaxy.z === null || galaxy.z === undefined ? "–" : galaxy.z.toFixed(4), "z"),
    cell(withErrors(galaxy.mass), "log M★"), cell(withErrors(galaxy.sfr), "log SFR"), status);
  return tr;
}

function addRows(galaxies, fresh) {
  // Rows that stay are left alone: a reader may be about to click one, or have the focus there.
  const body = at("galaxies");
  if (fresh) body.replaceChildren();
  body.prepend(...galaxies.slice(-MAX_ROWS).reverse().map(row));
  while (body.children.length > MAX_ROWS) body.lastElementChild.remove();
  at("no-rows").hidden = body.children.length > 0;
}

function drawNumbers() {
  const n = state.numbers;
  at("rate").textContent = n.rate < 10 ? n.rate.toFixed(1) : count(n.rate);
  at("lag").textContent = count(n.lag);
  at("latency").textContent = latencies(n.latency, n.latency_99);
  const all = Object.values(n.statuses).reduce((a, b) => a + b, 0);
  at("ok").textContent = all ? `${(100 * (n.statuses.OK ?? 0) / all).toFixed(1)} %` : "–";
  at("published").textContent = count(n.published);
  at("dead").textContent = count(n.dead_letters);
  at("artifact").textContent = n.artifact;
  notify(n.ready ? "" : `Not ready: ${n.reason}.`);
}

function notify(text) {
  at("notice").textContent = text;
  at("notice").hidden = text === "";
}

function draw() {
  drawNumbers();
  drawPlane();
  drawHistory();
  drawFlags();
}

function receive(event) {
  const news = JSON.parse(event.data);
  if (news.fresh) { state.history = []; state.galaxies = []; }
  state.numbers = news.numbers;
  state.history = [...state.history, ...news.history].slice(-MAX_HISTORY);
  state.galaxies = [...state.galaxies, ...news.galaxies].slice(-MAX_GALAXIES);
  addRows(news.galaxies, news.fresh);
  if (!document.hidden) draw();
}

async function openGalaxy(n) {
  const galaxy = state.galaxies.find((g) => g.n === n);
  opened = n;
  at("galaxy-name").textContent = galaxy.name;
  at("galaxy-facts").innerHTML = `z = ${galaxy.z.toFixed(4)} · log M★ = ${withErrors(galaxy.mass)}` +
    ` · log SFR = ${withErrors(galaxy.sfr)}`;
  at("galaxy-state").textContent = "Drawing its posterior …";
  at("fit-title").hidden = true;
  for (const id of ["corner", "fit"]) { Plotly.purge(id); at(id).hidden = true; }
  if (!at("galaxy").open) at("galaxy").showModal();
  let portrait;
  try {
    const answer = await fetch(`galaxies/${n}`);
    portrait = await answer.json();
  } catch {
    portrait = { error: "The daemon does not answer." };
  }
  if (opened !== n) return;
  at("galaxy-state").textContent = portrait.error ?? "";
  if (portrait.error) return;
  for (const id of ["corner", "fit"]) at(id).hidden = false;
  drawCorner(portrait);
  drawFit(portrait);
}

function drawCorner({ names, samples }) {
  const n = names.length, traces = [], axes = {};
  const column = (k) => samples.map((s) => s[k]);
  const span = (k) => {
    const sorted = column(k).sort((a, b) => a - b);
    const low = sorted[Math.floor(0.005 * sorted.length)];
    const high = sorted[Math.floor(0.995 * sorted.length)];
    return [low - 0.05 * (high - low), high + 0.05 * (high - low)];
  };
  const narrow = at("galaxy").clientWidth < 600;
  const side = 1 / n, gap = 0.02;
  for (let r = 0; r < n; r++) for (let c = 0; c <= r; c++) {
    const id = r * n + c + 1, x = `x${id}`, y = `y${id}`;
    const common = { showgrid: false, zeroline: false, nticks: narrow ? 3 : 4, linecolor: color("--line"),
      showline: true, ticks: "", tickangle: 0, tickfont: { size: narrow ? 9 : 11 } };
    const title = (k) => ({ text: (narrow ? SHORT : NAMES)[names[k]], font: { size: narrow ? 9 : 13 } });
    axes[`xaxis${id}`] = { ...common, anchor: y, domain: [c * side + gap, (c + 1) * side - gap],
      range: span(c), showticklabels: r === n - 1, title: r === n - 1 ? title(c) : undefined };
    axes[`yaxis${id}`] = { ...common, anchor: x, domain: [1 - (r + 1) * side + gap, 1 - r * side - gap],
      range: r === c ? undefined : span(r), showticklabels: c === 0 && r > 0,
      title: c === 0 && r > 0 ? title(r) : undefined };
    traces.push(r === c
      ? { type: "histogram", x: column(c), xaxis: x, yaxis: y, nbinsx: 30, hoverinfo: "none",
          marker: { color: color("--main") } }
      : { type: "histogram2dcontour", x: column(c), y: column(r), xaxis: x, yaxis: y, ncontours: 6,
          nbinsx: 22, nbinsy: 22, showscale: false, hoverinfo: "none", contours: { coloring: "fill" },
          line: { width: 0.6, color: color("--soft") },
          colorscale: [[0, color("--back")], [1, color("--main")]] });
  }
  const height = Math.min(at("galaxy").clientWidth - 40, 640);
  const { xaxis, yaxis, ...rest } = layout({ ...axes, height, bargap: 0, margin: { l: 62, r: 8, t: 8, b: 55 } });
  Plotly.newPlot("corner", traces, rest, CONFIG);
}

function drawFit({ bands, flux, flux_err, fit, no_fit }) {
  at("fit-title").hidden = false;
  const micro = (values) => values.map((value) => value / 1000);
  const traces = [];
  if (fit) traces.push({
    type: "scatter", mode: "markers", name: "posterior, 68 %", x: bands, y: micro(fit[1]),
    marker: { symbol: "line-ew", size: 26, line: { width: 2.5, color: color("--accent") } },
    error_y: { type: "data", symmetric: false, thickness: 9, width: 0, color: color("--accent") + "66",
      array: micro(fit[2].map((v, i) => v - fit[1][i])),
      arrayminus: micro(fit[1].map((v, i) => v - fit[0][i])) },
  });
  traces.push({
    type: "scatter", mode: "markers", name: "measured", x: bands, y: micro(flux),
    marker: { size: 9, color: color("--main") },
    error_y: { type: "data", array: micro(flux_err), thickness: 2, width: 5, color: color("--main") },
  });
  at("galaxy-state").textContent = fit ? "" : `The fit is not shown: ${no_fit}`;
  Plotly.newPlot("fit", traces, layout({
    showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    xaxis: { title: { text: "band" } }, margin: { l: 62, r: 8, t: 8, b: 45 },
    yaxis: { title: { text: "flux [µJy]" }, type: "log", tick0: 1, dtick: Math.log10(2), tickformat: ",.4~r" },
  }), CONFIG);
}

at("galaxies").addEventListener("click", (event) => {
  const n = event.target.dataset?.galaxy;
  if (event.target.tagName === "BUTTON") openGalaxy(Number(n));
});
at("galaxy").addEventListener("close", () => { opened = null; });
document.addEventListener("visibilitychange", () => { if (state.numbers) draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (state.numbers) draw(); });

const events = new EventSource("events");
events.onmessage = receive;
events.onerror = () => notify("The daemon does not answer. Trying again; what is shown is old.");
