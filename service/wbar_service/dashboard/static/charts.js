// Charts of training series: thousands of points are drawn as their mean, minimum and maximum in each column of pixels.

const COLUMN = 1.5;  // pixels: more columns are not seen, and every one is drawn for every series
const COLOURS = ["#2f6fdb", "#d2691e", "#2e8b57", "#b23a9b", "#8a6d00", "#00868b", "#c0392b", "#6a5acd", "#7f8c00", "#a0522d", "#4682b4", "#777777"];
const HEIGHT = 220;
// What a key does to the steps that are seen: how far they move, in their own width, and how many times as wide they become.
const KEYS = {
  ArrowLeft: [-0.1, 1], ArrowRight: [0.1, 1], PageUp: [-0.9, 1], PageDown: [0.9, 1],
  "+": [0, 0.5], "=": [0, 0.5], "-": [0, 2], Home: [0, Infinity],
};
const COUNTS = Array.from({ length: 24 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3));  // between two ticks of what is counted
// A share ends at 0 and at 1: its axis does, too, however close to an end all values lie.
export function accuracies(chart, low, high) {
  if (low === null) return [0, 1];
  const space = Math.max(0.1 * (high - low), 0.005);
  return [Math.max(0, low - space), Math.min(1, high + space)];
}
const percent = (value) => `${Number((100 * value).toFixed(2))} %`;
const FEWEST = 5;  // points that are seen at the closest

// Return at most so many columns between two steps; null where the points of all series are few enough to be drawn each.
// All series of a chart have the same columns: their tables need not be merged, which costs more than to draw them.
function gridOf(tables, low, high, most) {
  const counts = tables.map((xs) => lowerBound(xs, high + 1e-9) - lowerBound(xs, low));
  if (counts.reduce((sum, count) => sum + count, 0) <= most) return null;
  const count = Math.min(most, Math.max(...counts)), width = (high - low) / count;
  return { low, count, width, x: Array.from({ length: count }, (_, i) => low + (i + 0.5) * width) };
}

// Return the points from `low` to `high`, or what they are in each column of a grid: a column without points has nulls.
function binned(xs, ys, low, high, grid) {
  const first = lowerBound(xs, low), last = lowerBound(xs, high + 1e-9);
  if (!grid) {
    const mean = ys.slice(first, last).map((y) => (Number.isFinite(y) ? y : null));
    return { x: xs.slice(first, last), mean, min: mean, max: mean };
  }
  const nothing = () => new Array(grid.count).fill(null), mean = nothing(), min = nothing(), max = nothing();
  for (let i = first; i < last;) {
    const column = Math.min(grid.count - 1, Math.floor((xs[i] - grid.low) / grid.width));
    const end = column === grid.count - 1 ? Infinity : grid.low + (column + 1) * grid.width;
    let sum = 0, count = 0, least = Infinity, most = -Infinity;
    do {
      const y = ys[i++];
      if (y === null || !Number.isFinite(y)) continue;
      sum += y; count++;
      if (y < least) least = y;
      if (y > most) most = y;
    } while (i < last && xs[i] < end);
    if (count) { mean[column] = sum / count; min[column] = least; max[column] = most; }
  }
  return { x: grid.x, mean, min, max };
}

function lowerBound(xs, value) {
  let low = 0, high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

// An exponential mean that weighs its beginning right (as Adam does): a short series is not pulled to 0.
function smoothed(values) {
  const keep = 1 - 1 / Math.max(1, Math.min(20, values.length / 20));
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

class Run {
  constructor(id, label, ended) {
    Object.assign(this, { id, label, ended, steps: [], columns: {}, bands: [], high: false, curve: [] });
  }

  // Take points that come behind the ones that are there. bands: the stretches of steps in high phases.
  take(points) {
    for (const point of points) {
      this.steps.push(point.step);
      const high = point.phase === "high";
      if (high && this.high) this.bands.at(-1).end = point.step;
      else if (high) this.bands.push({ begin: point.step, end: point.step });
      this.high = high;
      for (const name of ["loss", "lr", "distance_to_mean", "grad_norm"]) (this.columns[name] ??= []).push(point[name]);
    }
  }
}

export class Charts {
  constructor(runs, api) {
    this.api = api;
    this.runs = runs.map((run) => new Run(run.id, run.label, run.ended));
    this.drawn = new Map();
    this.range = null;
    this.timer = null;
    this.frame = null;
    for (const id of ["smooth", "envelope"]) document.getElementById(id)?.addEventListener("change", () => this.draw());
    document.getElementById("unzoom")?.addEventListener("click", () => { this.range = null; this.draw(); });
    for (const place of document.querySelectorAll(".chart[data-series]")) this.listen(place);
    new ResizeObserver(() => this.drawn.forEach((chart, place) => chart.setSize({ width: place.clientWidth, height: HEIGHT }))).observe(document.getElementById("main"));
  }

  restart() { this.runs = this.runs.map((run) => new Run(run.id, run.label, false)); }

  ended() { this.runs.forEach((run) => { run.ended = true; }); }

  loadSoon() { this.timer ??= setTimeout(() => { this.timer = null; this.load(); }, 2000); }

  async load() {
    if (this.loading) return this.loading;
    this.loading = Promise.all(this.runs.map((run) => this.loadRun(run))).then(() => this.draw()).catch(() => {}).finally(() => { this.loading = null; });
    return this.loading;
  }

  async loadRun(run) {
    await Promise.all([this.loadSeries(run), this.loadCurve(run)]);
  }

  async loadSeries(run) {
    const after = run.steps.length ? `?after=${run.steps.at(-1)}` : "";
    run.take((await this.api(`/v1/jobs/${run.id}/metrics${after}`)).data);
  }

  async loadCurve(run) {
    if (run.ended) {
      const job = await this.api(`/v1/jobs/${run.id}`);
      if (job.result) { run.curve = job.result.curve; return; }
    }
    const curve = [];
    let page = { has_more: true, last_id: "" };
    while (page.has_more) {
      page = await this.api(`/v1/jobs/${run.id}/events?type=metrics&limit=100${page.last_id ? `&after=${page.last_id}` : ""}`);
      curve.push(...page.data.map((event) => event.data));
    }
    run.curve = curve;
  }

  // The steps of all series, from the first to the last.
  extent() {
    const there = this.runs.filter((run) => run.steps.length);
    return [Math.min(...there.map((run) => run.steps[0])), Math.max(...there.map((run) => run.steps.at(-1)))];
  }

  // See other steps than those from `low` to `high`: moved, wider or narrower, never beyond the ends.
  look([low, high], move, scale) {
    const [first, last] = this.extent(), most = Math.max(...this.runs.map((run) => run.steps.length));
    const width = Math.max((high - low) * scale, FEWEST * (last - first) / most);
    if (!(width < last - first)) this.range = null;
    else {
      const begin = Math.min(Math.max((low + high - width) / 2 + move * (high - low), first), last - width);
      this.range = [begin, begin + width];
    }
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }

  // A chart is moved and zoomed with keys, too, and moved by the pointer while Shift is held.
  listen(place) {
    place.tabIndex = 0;
    place.addEventListener("keydown", (event) => {
      const what = KEYS[event.key];
      if (!what || event.ctrlKey || event.metaKey || event.altKey || !this.drawn.has(place)) return;
      event.preventDefault();
      this.look(this.range ?? this.extent(), ...what);
    });
    place.addEventListener("mousedown", (event) => {
      const over = event.target.closest(".u-over");
      if (!event.shiftKey || !over || !this.range) return;
      event.stopPropagation();  // else the chart begins to select
      event.preventDefault();
      const from = this.range, begin = event.clientX, moved = new AbortController(), { signal } = moved;
      addEventListener("mousemove", (at) => this.look(from, (begin - at.clientX) / over.clientWidth, 1), { signal });
      addEventListener("mouseup", () => moved.abort(), { signal });
    }, { capture: true });
  }

  draw() {
    for (const place of document.querySelectorAll(".chart")) {
      if (place.dataset.series) this.drawSeries(place, place.dataset.series);
      else this.drawCurve(place, place.dataset.curve);
    }
  }

  checked(id) { return document.getElementById(id)?.checked ?? false; }

  drawSeries(place, name) {
    const runs = this.runs.filter((run) => run.steps.length);
    if (!runs.length) return;
    const [low, high] = this.range ?? this.extent();
    const smooth = this.checked("smooth") && name !== "lr", envelope = runs.length === 1 && this.checked("envelope");
    const tables = [], series = [{ label: "step", value: (_, step) => (step === null ? "–" : Math.round(step)) }], bands = [];
    const grid = gridOf(runs.map((run) => run.steps), low, high, Math.max(100, Math.round(place.clientWidth / COLUMN)));
    runs.forEach((run, i) => {
      const bins = binned(run.steps, run.columns[name], low, high, grid), colour = COLOURS[i % COLOURS.length];
      const columns = [bins.x, smooth ? smoothed(bins.mean) : bins.mean];
      series.push({ label: run.label || name, stroke: colour, width: runs.length > 3 ? 1 : 1.5, spanGaps: true, points: { show: false } });
      if (envelope) {
        columns.push(bins.max, bins.min);
        series.push({ label: "max", stroke: `${colour}55`, width: 0, spanGaps: true, points: { show: false } }, { label: "min", stroke: `${colour}55`, width: 0, spanGaps: true, points: { show: false } });
        bands.push({ series: [2, 3], fill: `${colour}33` });
      }
      tables.push(columns);
    });
    const shades = runs.length === 1 ? runs[0].bands : [];
    const data = tables.length === 1 ? tables[0] : grid ? [grid.x, ...tables.flatMap((table) => table.slice(1))] : uPlot.join(tables);
    this.show(place, data, series, bands, shades, true);
  }

  drawCurve(place, name) {
    const runs = this.runs.filter((run) => run.curve.length);
    if (!runs.length) return;
    const tables = runs.map((run) => [run.curve.map((point) => point.n), run.curve.map((point) => point[name])]);
    const share = "share" in place.dataset, called = name === "accuracy" ? place.dataset.score : name;
    const shown = share ? (_, value) => (value === null ? "–" : percent(value)) : undefined;
    const series = [{ label: "n" }, ...runs.map((run, i) => ({ label: run.label || called, value: shown, stroke: COLOURS[i % COLOURS.length], width: 1.5, points: { show: true, size: 6 } }))];
    this.show(place, tables.length === 1 ? tables[0] : uPlot.join(tables), series, [], [], false, share ? "share" : name);
  }

  // curve: which number of the average is drawn over n, "share" for one in percent; none: a series over the steps.
  show(place, data, series, bands, shades, zooms, curve = "") {
    const shape = `${series.map((one) => one.label).join()}|${bands.length}`;
    const old = this.drawn.get(place);
    if (old && old.shape === shape) { old.shades = shades; old.setData(data); return; }
    old?.destroy();
    const ink = getComputedStyle(document.body).color, grid = getComputedStyle(document.documentElement).getPropertyValue("--line");
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid } };
    const across = { ...axis, incrs: COUNTS }, up = { ...axis, size: 60 };
    if (curve === "share") up.values = (_, ticks) => ticks.map(percent);
    const scales = { x: { time: false } };
    if (curve) scales.x.range = (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]);
    if (curve === "share") scales.y = { range: accuracies };
    const hooks = { drawClear: [(chart) => shade(chart)] };
    if (zooms) hooks.setSelect = [(chart) => {
      if (chart.select.width < 4) return;
      this.range = [chart.posToVal(chart.select.left, "x"), chart.posToVal(chart.select.left + chart.select.width, "x")];
      chart.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      this.draw();
    }];
    const chart = new uPlot({
      width: place.clientWidth, height: HEIGHT, series, bands, hooks, scales, axes: [across, up],
      cursor: { drag: { x: zooms, y: false, setScale: false } }, legend: { live: true },
    }, data, place);
    chart.shape = shape;
    chart.shades = shades;
    this.drawn.set(place, chart);
  }
}

function shade(chart) {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--band");
  for (const { begin, end } of chart.shades ?? []) {
    const left = Math.max(bbox.left, chart.valToPos(begin, "x", true)), right = Math.min(bbox.left + bbox.width, chart.valToPos(end, "x", true));
    if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
  }
  ctx.restore();
}
