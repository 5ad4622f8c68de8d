// Charts of training series: thousands of points are drawn as their mean, minimum and maximum in each column of pixels.

const COLUMNS = 500;
const COLOURS = ["#2f6fdb", "#d2691e", "#2e8b57", "#b23a9b", "#8a6d00", "#00868b", "#c0392b", "#6a5acd", "#7f8c00", "#a0522d", "#4682b4", "#777777"];
const HEIGHT = 220;

// Bin the points from `low` to `high` into at most COLUMNS columns.
export function binned(xs, ys, low, high) {
  const first = lowerBound(xs, low), last = lowerBound(xs, high + 1e-9);
  const each = Math.max(1, Math.ceil((last - first) / COLUMNS));
  const x = [], mean = [], min = [], max = [];
  for (let begin = first; begin < last; begin += each) {
    const end = Math.min(begin + each, last);
    let sum = 0, count = 0, least = Infinity, most = -Infinity;
    for (let i = begin; i < end; i++) {
      const y = ys[i];
      if (y === null || !Number.isFinite(y)) continue;
      sum += y; count++;
      if (y < least) least = y;
      if (y > most) most = y;
    }
    x.push(xs[Math.floor((begin + end - 1) / 2)]);
    mean.push(count ? sum / count : null); min.push(count ? least : null); max.push(count ? most : null);
  }
  return { x, mean, min, max };
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
export function smoothed(values) {
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
    Object.assign(this, { id, label, ended, steps: [], columns: {}, phases: [], curve: [] });
  }

  take(points) {
    for (const point of points) {
      this.steps.push(point.step);
      this.phases.push(point.phase);
      for (const name of ["loss", "lr", "distance_to_mean", "grad_norm"]) (this.columns[name] ??= []).push(point[name]);
    }
  }

  // The stretches of steps in high phases.
  bands() {
    const found = [];
    this.phases.forEach((phase, i) => {
      if (phase !== "high") return;
      const step = this.steps[i], band = found.at(-1);
      if (band && band.index === i - 1) { band.end = step; band.index = i; } else found.push({ begin: step, end: step, index: i });
    });
    return found;
  }
}

export class Charts {
  constructor(runs, api) {
    this.api = api;
    this.runs = runs.map((run) => new Run(run.id, run.label, run.ended));
    this.drawn = new Map();
    this.range = null;
    this.timer = null;
    for (const id of ["smooth", "envelope"]) document.getElementById(id)?.addEventListener("change", () => this.draw());
    document.getElementById("unzoom")?.addEventListener("click", () => { this.range = null; this.draw(); });
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
    const after = run.steps.length ? `?after=${run.steps.at(-1)}` : "";
    run.take((await this.api(`/v1/jobs/${run.id}/metrics${after}`)).data);
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
    const low = this.range?.[0] ?? Math.min(...runs.map((run) => run.steps[0])), high = this.range?.[1] ?? Math.max(...runs.map((run) => run.steps.at(-1)));
    const smooth = this.checked("smooth") && name !== "lr", envelope = runs.length === 1 && this.checked("envelope");
    const tables = [], series = [{ label: "step" }], bands = [];
    runs.forEach((run, i) => {
      const bins = binned(run.steps, run.columns[name], low, high), colour = COLOURS[i % COLOURS.length];
      const columns = [bins.x, smooth ? smoothed(bins.mean) : bins.mean];
      series.push({ label: run.label || name, stroke: colour, width: 1.5, spanGaps: true, points: { show: false } });
      if (envelope) {
        columns.push(bins.max, bins.min);
        series.push({ label: "max", stroke: `${colour}55`, width: 0.5, points: { show: false } }, { label: "min", stroke: `${colour}55`, width: 0.5, points: { show: false } });
        bands.push({ series: [2, 3], fill: `${colour}22` });
      }
      tables.push(columns);
    });
    const shades = runs.length === 1 ? runs[0].bands() : [];
    this.show(place, tables.length === 1 ? tables[0] : uPlot.join(tables), series, bands, shades, true);
  }

  drawCurve(place, name) {
    const runs = this.runs.filter((run) => run.curve.length);
    if (!runs.length) return;
    const tables = runs.map((run) => [run.curve.map((point) => point.n), run.curve.map((point) => point[name])]);
    const series = [{ label: "n" }, ...runs.map((run, i) => ({ label: run.label || name, stroke: COLOURS[i % COLOURS.length], width: 1.5, points: { show: true, size: 6 } }))];
    this.show(place, tables.length === 1 ? tables[0] : uPlot.join(tables), series, [], [], false);
  }

  show(place, data, series, bands, shades, zooms) {
    const shape = `${series.map((one) => one.label).join()}|${bands.length}`;
    const old = this.drawn.get(place);
    if (old && old.shape === shape) { old.shades = shades; old.setData(data); return; }
    old?.destroy();
    const ink = getComputedStyle(document.body).color, grid = getComputedStyle(document.documentElement).getPropertyValue("--line");
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid } };
    const hooks = { drawClear: [(chart) => shade(chart)] };
    if (zooms) hooks.setSelect = [(chart) => {
      if (chart.select.width < 4) return;
      this.range = [chart.posToVal(chart.select.left, "x"), chart.posToVal(chart.select.left + chart.select.width, "x")];
      chart.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      this.draw();
    }];
    const chart = new uPlot({
      width: place.clientWidth, height: HEIGHT, series, bands, hooks, scales: { x: { time: false } }, axes: [axis, { ...axis, size: 60 }],
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
