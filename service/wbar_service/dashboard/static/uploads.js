// Uploads from the page by tus 1.0: in parts, with progress; a pause, a lost connection or a reload loses nothing.

const PART = 8 * 1024 * 1024;
const TUS = { "Tus-Resumable": "1.0.0" };
const RETRY_SECONDS = [1, 2, 5, 10, 20, 30];

const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const encoded = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

class Refused extends Error {}

class Upload {
  constructor(file, kind, csrf, tell) {
    Object.assign(this, { file, kind, csrf, tell, paused: false, stopped: false, request: null });
    this.place = `wbar-upload ${kind} ${file.name} ${file.size} ${file.lastModified}`;
  }

  async run() {
    const url = (await this.begun()) ?? (await this.begin());
    let offset = await this.offset(url), failures = 0;
    while (offset < this.file.size) {
      if (this.stopped) { await this.forget(url); return null; }
      if (this.paused) {
        while (this.paused && !this.stopped) await wait(0.2);
        if (!this.stopped) offset = await this.offset(url);  // of the part that was cut off, some has arrived
        continue;
      }
      try {
        offset = await this.send(url, offset);
        failures = 0;
      } catch (error) {
        if (error instanceof Refused) throw error;
        if (this.paused || this.stopped) continue;
        this.tell(offset, "connection lost, trying again…");
        await wait(RETRY_SECONDS[Math.min(failures++, RETRY_SECONDS.length - 1)]);
        offset = await this.offset(url).catch(() => offset);
      }
    }
    return url.split("/").at(-1);
  }

  // What was made of it needs it no more.
  done() { localStorage.removeItem(this.place); }

  // The address of an upload of the same file that was begun before and is still there.
  async begun() {
    const url = localStorage.getItem(this.place);
    if (!url) return null;
    for (const seconds of [...RETRY_SECONDS, 0]) {
      const answer = await fetch(url, { method: "HEAD", headers: TUS }).catch(() => null);
      if (answer?.ok) return url;
      if (answer && [404, 410].includes(answer.status)) break;
      if (answer && answer.status < 500) throw new Refused(`HTTP ${answer.status}`);
      this.tell(0, "connection lost, trying again…");
      await wait(seconds);
    }
    localStorage.removeItem(this.place);
    return null;
  }

  async begin() {
    const answer = await fetch("/v1/uploads", {
      method: "POST",
      headers: { ...TUS, "X-CSRF-Token": this.csrf, "Upload-Length": String(this.file.size), "Upload-Metadata": `filename ${encoded(this.file.name)}` },
    });
    if (!answer.ok) throw new Refused((await answer.json().catch(() => ({}))).detail ?? `HTTP ${answer.status}`);
    const url = new URL(answer.headers.get("Location"), location.href).pathname;
    localStorage.setItem(this.place, url);
    return url;
  }

  async offset(url) {
    const answer = await fetch(url, { method: "HEAD", headers: TUS });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    return Number(answer.headers.get("Upload-Offset"));
  }

  send(url, offset) {
    return new Promise((resolve, reject) => {
      const request = (this.request = new XMLHttpRequest());
      request.open("PATCH", url);
      const headers = { ...TUS, "X-CSRF-Token": this.csrf, "Upload-Offset": String(offset), "Content-Type": "application/offset+octet-stream" };
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => this.tell(offset + event.loaded, "");
      request.onload = () => {
        if (request.status === 204) return resolve(Number(request.getResponseHeader("Upload-Offset")));
        const gone = request.status >= 400 && request.status < 500 && ![408, 409, 423, 429].includes(request.status);
        return reject(new (gone ? Refused : Error)(detail(request)));
      };
      request.onerror = request.onabort = () => reject(new Error("no answer"));
      request.send(this.file.slice(offset, offset + PART));
    });
  }

  pause() { this.paused = !this.paused; if (this.paused) this.request?.abort(); return this.paused; }
  stop() { this.stopped = true; this.paused = false; this.request?.abort(); }

  async forget(url) {
    localStorage.removeItem(this.place);
    await fetch(url, { method: "DELETE", headers: { ...TUS, "X-CSRF-Token": this.csrf } });
  }
}

function detail(request) {
  try { return JSON.parse(request.responseText).detail; } catch { return `HTTP ${request.status}`; }
}

const size = (bytes) => (bytes < 1048576 ? `${(bytes / 1024).toFixed(0)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`);

// What becomes of the bytes: a checkpoint or dataset, which a worker reads.
async function create(kind, name, said, upload, csrf, api, tell) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": csrf, "Idempotency-Key": upload };
  const path = `/v1/${kind}s`, query = new URLSearchParams({ name, ...said });
  const asked = { method: "POST", headers, body: JSON.stringify({ upload }) };
  const again = () => wait(5).then(() => api(`${path}?${query}`, asked));  // the same key: one object
  let made = await api(`${path}?${query}`, asked).catch((error) => (error instanceof TypeError ? again() : Promise.reject(error)));
  tell("being read…");
  while (made.status === "processing") {
    await wait(0.5);
    made = await api(`${path}/${made.id}`);
  }
  return made;
}

function recognised(kind, made) {
  if (kind === "checkpoint") return `${made.architecture.name}, ${made.architecture.num_classes} classes, ${made.parameters.toLocaleString()} parameters`;
  return `${made.classes.length} classes, ${made.splits.train.images} training and ${made.splits.val.images} held-out images`;
}

// What is worth knowing of it, and where the rest stands.
function notesOf(kind, made) {
  const items = (made.warnings ?? []).map((text) => Object.assign(document.createElement("li"), { textContent: text }));
  const link = Object.assign(document.createElement("a"), { href: `/${kind}s/${made.id}`, textContent: `more about this ${kind}` });
  const last = document.createElement("li");
  last.append(link);
  return [...items, last];
}

// While a file is on its way the browser asks before the page is left, whichever drop it was given to.
const running = new Set();
const ask = (event) => event.preventDefault();
function leaving(upload, runs) {
  if (runs) running.add(upload); else running.delete(upload);
  if (running.size) addEventListener("beforeunload", ask); else removeEventListener("beforeunload", ask);
}

function install(drop, csrf, api) {
  const kind = drop.dataset.upload, input = drop.querySelector("input[type=file]"), transfer = drop.querySelector(".transfer");
  const bar = transfer.querySelector("progress"), notes = transfer.querySelector("[data-notes]"), text = transfer.querySelector("[role=status]");
  const pause = transfer.querySelector("[data-pause]"), stop = transfer.querySelector("[data-stop]");
  let upload = null;
  drop.hidden = false;
  pause.addEventListener("click", () => { pause.textContent = upload?.pause() ? "Resume" : "Pause"; });
  stop.addEventListener("click", () => upload?.stop());

  async function take(file) {
    if (!file) return;
    if (upload) { text.textContent = `${upload.file.name} is still being sent: stop it first`; return; }
    transfer.hidden = false;
    pause.hidden = stop.hidden = false;
    pause.textContent = "Pause";
    upload = new Upload(file, kind, csrf, (sent, note) => {
      bar.value = file.size ? sent / file.size : 0;
      text.textContent = note || `${size(sent)} of ${size(file.size)}`;
    });
    const fields = [...drop.querySelectorAll("[data-parameter]")].filter((field) => field.value);
    const said = Object.fromEntries(fields.map((field) => [field.dataset.parameter, field.value]));
    notes.replaceChildren();
    leaving(upload, true);
    try {
      const id = await upload.run();
      pause.hidden = stop.hidden = true;
      if (id === null) { text.textContent = "stopped"; return; }
      const made = await create(kind, file.name, said, id, csrf, api, (note) => { text.textContent = note; });
      upload.done();
      if (made.status === "rejected") throw new Refused(made.error.message);
      text.textContent = recognised(kind, made);
      notes.replaceChildren(...notesOf(kind, made));
      const select = document.getElementById(kind);
      if (select) {
        select.append(new Option(`${made.name} · ${made.id}`, made.id, true, true));
        select.dispatchEvent(new Event("change", { bubbles: true }));
      }
    } catch (error) {
      text.textContent = error.message;
    } finally {
      leaving(upload, false);
      upload = null;
      input.value = "";
      const rows = document.querySelector("#rows[data-refresh]");
      if (rows) htmx.ajax("GET", rows.dataset.refresh, { target: rows, swap: "innerHTML" });
    }
  }

  input.addEventListener("change", () => take(input.files[0]));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); takeDropped(event.dataTransfer); });

  function takeDropped(given) {
    if (given.items[0]?.webkitGetAsEntry?.()?.isDirectory) {
      transfer.hidden = false;
      pause.hidden = stop.hidden = true;
      text.textContent = `${given.files[0]?.name ?? "this"} is a folder: make a .zip of it, or send it with: wbar datasets add FOLDER`;
      return;
    }
    take(given.files[0]);
  }
}

export function installUploads(csrf, api) {
  for (const drop of document.querySelectorAll("[data-upload]")) install(drop, csrf, api);
}
