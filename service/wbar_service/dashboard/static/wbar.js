// The live parts of the dashboard, on the same API that everything else uses: refreshing tables, charts, events, uploads.
// Every page works without it; what it adds is that no reader has to press reload.
import { Charts } from "./charts.js";
import { installUploads } from "./uploads.js";

const SECONDS = 1000;
const csrf = document.querySelector("meta[name=csrf]")?.content ?? "";
const one = (selector, from = document) => from.querySelector(selector);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

// Times are sent as UTC and shown in the reader's zone.
const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
function localTimes(from = document) {
  for (const time of all("time[datetime]:not([title])", from)) {
    time.title = time.textContent;
    time.textContent = zoned.format(new Date(time.dateTime));
  }
}

function connection(lost) {
  const shown = one("#connection");
  if (shown) shown.textContent = lost ? "The service does not answer: trying again…" : "";
}

async function api(path, options = {}) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (answer.status === 401) location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `HTTP ${answer.status}`);
  return answer.json();
}

// A part of the page is fetched again while it is seen, and left alone while the reader works in it.
function refresh(part) {
  const busy = part.contains(document.activeElement) && document.activeElement !== part;
  const ticked = one("input:checked", part);
  if (document.hidden || busy || ticked) return Promise.resolve();
  const open = all("details", part).map((details) => details.open);
  return htmx.ajax("GET", part.dataset.refresh, { target: part, swap: "innerHTML" }).then(() => {
    all("details", part).forEach((details, i) => { if (i < open.length) details.open = open[i]; });
  });
}

function keepFresh(part) {
  const wait = () => (one(".status.running, .status.processing, .status.queued", part) ? 3 : 15) * SECONDS;
  const again = () => setTimeout(() => refresh(part).finally(again), wait() * (0.9 + 0.2 * Math.random()));
  again();
  document.addEventListener("visibilitychange", () => refresh(part));
}

document.addEventListener("htmx:afterSwap", (event) => { connection(false); localTimes(event.target); });
document.addEventListener("htmx:sendError", () => connection(true));
document.addEventListener("htmx:responseError", () => connection(true));

// One job: events as they come, series behind them.
function followJob(page) {
  const job = page.dataset.job, state = one("#state"), log = one("#log");
  const charts = new Charts([{ id: job, label: "", ended: "ended" in page.dataset }], api);
  charts.load();
  let last = page.dataset.after, source = null, ended = "ended" in page.dataset, due = false;

  function soon() {
    if (due) return;
    due = true;
    setTimeout(() => { due = false; refresh(state); charts.load(); }, 0.3 * SECONDS);
  }

  function say(event) {
    const line = document.createElement("li"), data = event.data;
    const time = document.createElement("time");
    time.dateTime = event.created_at;
    const kind = document.createElement("b");
    kind.textContent = ` ${event.type} `;
    const text = event.type === "log" ? data.message : event.type === "snapshot" ? `snapshot ${data.n}` : data.status + (data.error ? `: ${data.error.message}` : "");
    line.append(time, kind, text);
    if (event.type === "log") line.className = data.level;
    log.prepend(line);
    localTimes(log);
  }

  function progress(at) {
    const bar = one("progress", state), text = one("#progress-text", state);
    if (!bar || !text) return soon();
    bar.value = at.fraction;
    const left = at.eta_seconds === null ? "" : ` · ${Math.round(at.eta_seconds)} s left`;
    const speed = at.images_per_second ? ` · ${Math.round(at.images_per_second)} images/s` : "";
    text.textContent = `${at.phase} · cycle ${at.cycle} of ${at.cycles} · step ${at.step} of ${at.total_steps}${speed}${left}`;
  }

  function listen() {
    if (ended || source || document.hidden) return;
    source = new EventSource(`/v1/jobs/${job}/events${last ? `?after=${last}` : ""}`);
    source.onopen = () => connection(false);
    source.onerror = () => connection(true);
    for (const type of ["status", "progress", "metrics", "snapshot", "log"]) {
      source.addEventListener(type, (message) => {
        const event = JSON.parse(message.data);
        last = event.id;
        if (type === "progress") { progress(event.data); charts.loadSoon(); return; }
        if (type !== "metrics") say(event);
        ended = type === "status" && ["succeeded", "failed", "cancelled"].includes(event.data.status);
        if (ended) { charts.ended(); rest(); }
        soon();
      });
    }
  }

  // A browser has six connections to a host: a page that is hidden holds none of them.
  function rest() { source?.close(); source = null; }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) rest();
    else { listen(); soon(); }
  });
  listen();
}

// The form of a new job shows what it would be while it is filled in.
function previewJob(form) {
  let timer = null;
  const show = () => htmx.ajax("POST", "/jobs/new/preview", { source: form, target: "#preview", swap: "innerHTML" }).then(() => {
    for (const field of all(".field[data-path]", form)) {
      const fault = one(`#preview [data-fault="${CSS.escape(field.dataset.path)}"]`);
      const path = field.dataset.path;
      one(".field-fault", field).textContent = fault ? fault.textContent.trim().replace(`${path}: `, "") : "";
      field.classList.toggle("wrong", Boolean(fault));
    }
  });
  const later = () => { clearTimeout(timer); timer = setTimeout(show, 0.4 * SECONDS); };
  form.addEventListener("input", later);
  form.addEventListener("change", (event) => {
    if (!event.target.matches("[data-fields]")) return later();
    return htmx.ajax("POST", "/jobs/new/fields", { source: form, target: "#method-fields", swap: "innerHTML" }).then(later);
  });
}

localTimes();
all("[data-refresh]").filter((part) => part.id === "rows").forEach(keepFresh);
if (one("#job")) followJob(one("#job"));
if (one("#new-job")) previewJob(one("#new-job"));
if (one("#compare")) {
  const heads = all("thead a", one("table"));
  const ids = one("#compare").dataset.jobs.split(" ");
  new Charts(ids.map((id, i) => ({ id, label: heads[i]?.textContent ?? id, ended: true })), api).load();
}
installUploads(csrf, api);
