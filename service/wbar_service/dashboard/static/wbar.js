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

// As the service writes durations: the two largest units.
function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

const AWAY = "The service does not answer: trying again…";
function connection(text) {
  const shown = one("#connection");
  if (!shown) return;
  const turned = shown.textContent !== text;
  shown.textContent = text;
  if (turned && text === AWAY) heartbeat.soon();
}

// Pages on which nothing happens by itself ask once a minute while they are seen whether the service is still there: when it
// is not, they say so, ask every five seconds, and take it back. down: no connection came about, which an answer disproves.
const heartbeat = {
  timer: null,
  down: false,
  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.beat(), (one("#connection").textContent === AWAY ? 5 : 60) * SECONDS);
  },
  async beat() {
    if (!document.hidden) {
      const there = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(10 * SECONDS) }).then((answer) => answer.ok, () => false);
      if (!there) { this.down = true; connection(AWAY); }
      else if (this.down) {
        this.down = false;
        connection("");
        all("#rows[data-refresh]").forEach((part) => refresh(part).catch(() => {}));
      }
    }
    this.soon();
  },
};

// What the API and the command line call a thing can be copied, also where the browser keeps its clipboard from pages without TLS.
function copyButtons(from = document) {
  for (const text of all("[data-copy]", from)) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${text.textContent}`);
    button.addEventListener("click", async () => {
      const written = await navigator.clipboard?.writeText(text.textContent).then(() => true, () => false);
      if (!written) {
        getSelection().selectAllChildren(text);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2 * SECONDS);
    });
    text.removeAttribute("data-copy");
    text.after(" ", button);
  }
}

async function api(path, options = {}) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (answer.status === 401) location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `HTTP ${answer.status}`);
  return answer.json();
}

// A part of the page is fetched again while it is seen, and later where the reader is filling something in.
function refresh(part) {
  const held = document.activeElement, inside = part.contains(held);
  const busy = (inside && held.matches("input, select, textarea")) || one("input:checked", part);
  if (document.hidden || busy) {
    if (inside && !document.hidden) held.addEventListener("blur", () => setTimeout(() => refresh(part)), { once: true });
    return Promise.resolve();
  }
  const stops = () => all("a, button, summary, [tabindex]", part);
  const place = inside ? stops().indexOf(held) : -1, name = held?.textContent;
  const open = all("details", part).map((details) => details.open);
  return htmx.ajax("GET", part.dataset.refresh, { target: part, swap: "innerHTML" }).then(() => {
    all("details", part).forEach((details, i) => { if (i < open.length) details.open = open[i]; });
    const same = stops()[place];
    if (same && same.textContent === name) same.focus({ preventScroll: true });
  });
}

function keepFresh(part) {
  const wait = () => (one(".status.running, .status.processing, .status.queued, .status.pending", part) ? 3 : 15) * SECONDS;
  const again = () => setTimeout(() => refresh(part).catch(() => {}).finally(again), wait() * (0.9 + 0.2 * Math.random()));
  again();
  document.addEventListener("visibilitychange", () => refresh(part).catch(() => {}));
}

document.addEventListener("htmx:afterSwap", (event) => { connection(""); localTimes(event.target); copyButtons(event.target); });
for (const lost of ["htmx:sendError", "htmx:timeout"]) document.addEventListener(lost, () => { heartbeat.down = true; connection(AWAY); });
document.addEventListener("htmx:responseError", (event) => {
  const { status } = event.detail.xhr;
  connection(status >= 500 ? `The service cannot answer now (HTTP ${status}): trying again…` : `This part of the page cannot be shown any more (HTTP ${status}): reload it.`);
});

// One job: events as they come, series behind them.
function followJob(page) {
  const job = page.dataset.job, state = one("#state"), log = one("#log"), states = JSON.parse(log.dataset.states), phases = JSON.parse(log.dataset.phases);
  const charts = new Charts([{ id: job, label: "", ended: "ended" in page.dataset }], api);
  charts.load();
  let last = page.dataset.after, source = null, ended = "ended" in page.dataset, due = false;

  function soon() {
    if (due) return;
    due = true;
    setTimeout(() => { due = false; refresh(state).catch(() => {}); charts.load(); }, 0.3 * SECONDS);
  }

  function say(event) {
    const line = document.createElement("li"), data = event.data;
    const time = document.createElement("time");
    time.dateTime = event.created_at;
    const kind = document.createElement("b");
    kind.textContent = ` ${event.type} `;
    const text = event.type === "log" ? data.message : event.type === "snapshot" ? `number ${data.n}` : states[data.status] + (data.error ? ` ${data.error.message}` : "");
    line.append(time, kind, text);
    if (event.type === "log") line.className = data.level;
    log.prepend(line);
    localTimes(log);
  }

  function progress(at) {
    const bar = one("progress", state), text = one("#progress-text", state);
    if (!bar || !text) return soon();
    bar.value = at.fraction;
    const left = at.eta_seconds === null ? "" : ` · ${duration(at.eta_seconds)} left`;
    const speed = at.images_per_second ? ` · ${Math.round(at.images_per_second)} images/s` : "";
    const place = at.step ? `${phases[at.phase]} · cycle ${at.cycle} of ${at.cycles} · step ${at.step} of ${at.total_steps}` : `${phases[at.phase]}: the start is measured first`;
    text.textContent = `${place}${speed}${left}`;
  }

  function listen() {
    if (ended || source || document.hidden) return;
    source = new EventSource(`/v1/jobs/${job}/events${last ? `?after=${last}` : ""}`);
    source.onopen = () => connection("");
    source.onerror = () => {
      connection(AWAY);
      if (source?.readyState !== EventSource.CLOSED) return;  // else the browser tries again by itself
      rest();
      setTimeout(listen, 5 * SECONDS);
    };
    for (const type of ["status", "progress", "metrics", "snapshot", "log"]) {
      source.addEventListener(type, (message) => {
        const event = JSON.parse(message.data);
        last = event.id;
        if (type === "progress") { progress(event.data); charts.loadSoon(); return; }
        if (type !== "metrics") say(event);
        ended = type === "status" && ["succeeded", "failed", "cancelled"].includes(event.data.status);
        if (ended) { charts.ended(); rest(); htmx.ajax("GET", `/jobs/${job}/ask`, { target: "#ask", swap: "innerHTML" }); }
        else if (type === "status") charts.restart();  // a run that started over has other points
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
      if (fault && !one(".field-fault", field))
        field.append(Object.assign(document.createElement("p"), { className: "fault field-fault", role: "alert" }));
      const said = one(".field-fault", field);
      if (said) said.textContent = fault ? fault.textContent.trim().replace(`${path}: `, "") : "";
      field.classList.toggle("wrong", Boolean(fault));
      if (fault && field.closest("details")) field.closest("details").open = true;
    }
    for (const input of all("[data-input]", form)) {
      const found = all(`#preview [data-warning="${input.dataset.input}"]`, form).map((text) => text.cloneNode(true));
      const texts = (nodes) => nodes.map((node) => node.textContent).join();
      const shown = one(".field-warnings", input);
      if (texts(found) !== texts([...shown.children])) shown.replaceChildren(...found);  // said aloud once
    }
  });
  const later = () => { clearTimeout(timer); timer = setTimeout(show, 0.4 * SECONDS); };
  const changed = (field) => {
    if (!field.matches("[data-fields]")) return later();
    // From the field itself: requests of one element wait for one another, and only the last of those that wait is sent.
    return htmx.ajax("POST", "/jobs/new/fields", { source: field, target: "#method-fields", swap: "innerHTML" }).then(later);
  };
  form.addEventListener("input", later);
  form.addEventListener("change", (event) => changed(event.target));
  // What was filled in before this script was there: by a quick reader, or by a browser that goes back.
  const isChosen = (select) => select.value !== ([...select.options].find((option) => option.defaultSelected) ?? select.options[0])?.value;
  const before = [...all("select", form).filter(isChosen), ...all("input, textarea", form).filter((field) => field.value !== field.defaultValue || field.checked !== field.defaultChecked)];
  if (before.length) changed(before.find((field) => field.matches("[data-fields]")) ?? before[0]);
}

// Who comes from another site is signed in, and the browser has not said so: it does, once this page asks itself.
async function goOn(form) {
  const answer = await fetch(form.dataset.next, { redirect: "manual" }).catch(() => null);
  if (answer?.ok) location.replace(form.dataset.next);
}

// A second click must not make a second job.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "yes";
  setTimeout(() => { delete form.dataset.sent; }, 5 * SECONDS);
});

localTimes();
copyButtons();
if (one("meta[name=csrf]")) {
  heartbeat.soon();
  for (const woken of ["focus", "online", "offline"]) addEventListener(woken, () => heartbeat.beat());
  document.addEventListener("visibilitychange", () => heartbeat.beat());
}
if (one("#sign-in:not(:has([name=link]))")) goOn(one("#sign-in"));
all("[data-refresh]").filter((part) => part.id === "rows").forEach(keepFresh);
if (one("#job")) followJob(one("#job"));
if (one("#new-job")) previewJob(one("#new-job"));
if (one("#compare")) {
  const heads = all("thead a", one("table"));
  const ids = one("#compare").dataset.jobs.split(" ");
  new Charts(ids.map((id, i) => ({ id, label: heads[i]?.textContent ?? id, ended: true })), api).load();
}
installUploads(csrf, api);
// The form may come later than the page: when the job has succeeded. Its script comes when it is used.
document.addEventListener("submit", async (event) => {
  if (event.target.id !== "ask-form") return;
  event.preventDefault();
  const asking = await import("./ask.js").catch(() => connection(AWAY));
  asking?.ask(event.target, csrf);
});
