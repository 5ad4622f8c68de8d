// The form that asks one of a job's networks about pictures: they go to the API as files, and their thumbnails stay here.
import { drawn, said } from "./answers.js";

const THUMBNAIL = 64, LARGE = 256;  // pixels; the larger where something is drawn over it

class Refused extends Error {}

// A canvas and no image: the page may not load what is not its own.
async function thumbnail(file, size) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", file.name);
  canvas.width = canvas.height = size;
  const picture = await createImageBitmap(file).catch(() => null);  // one that the browser cannot read is the service's to name
  if (!picture) return canvas;
  const scale = size / Math.max(picture.width, picture.height);
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return canvas;
}

function check(files, most, bytes) {
  if (files.length > most) throw new Refused(`${files.length} images are chosen, and one question takes ${most}: choose fewer.`);
  const size = files.reduce((sum, file) => sum + file.size, 0);
  if (size > bytes) throw new Refused(`The images have ${(size / 2 ** 20).toFixed(1)} MiB together, and one question takes ${bytes / 2 ** 20} MiB: choose fewer.`);
}

async function answers({ job, asked }, network, files, csrf) {
  const body = new FormData();
  for (const file of files) body.append("file", file);
  const path = `/v1/jobs/${job}/predict?network=${network}&${asked}`;
  const answer = await fetch(path, { method: "POST", body, credentials: "same-origin", headers: { "X-CSRF-Token": csrf } })
    .catch(() => { throw new Refused("The service does not answer: try again."); });
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const index = /^\/images\/(\d+)$/.exec(found.errors?.[0]?.pointer ?? "")?.[1];
  let detail = found.detail ?? `HTTP ${answer.status}`;
  if (index !== undefined) detail = detail.replace(`images/${index}`, files[index].name);  // the API knows no names
  const wait = answer.headers.get("Retry-After");
  throw new Refused(`${detail}${wait ? ` (in ${wait} s)` : ""}`);
}

export async function ask(form, csrf) {
  const part = (name) => document.getElementById(`ask-${name}`);
  const files = [...form.elements.file.files], network = form.elements.network, button = form.querySelector("button");
  const label = network.selectedOptions[0].textContent, fault = part("fault");
  if (button.disabled) return;  // a second click, while the first one's script was still being loaded
  button.disabled = true;
  fault.hidden = true;
  part("answers").hidden = true;
  part("status").textContent = `Asking about ${files.length === 1 ? "one image" : `${files.length} images`}…`;
  try {
    check(files, Number(form.dataset.most), Number(form.dataset.bytes));
    const found = await answers(form.dataset, network.value, files, csrf);
    const size = "height" in found.data[0] ? LARGE : THUMBNAIL;
    const pictures = await Promise.all(files.map((file) => thumbnail(file, size)));
    await Promise.all(pictures.map((canvas, i) => drawn(canvas, found, found.data[i])));
    const rows = found.data.map((one, i) => {
      const row = document.createElement("tr"), name = document.createElement("th");
      name.scope = "row";
      name.textContent = files[i].name;
      row.insertCell().append(pictures[i]);
      row.append(name);
      row.insertCell().textContent = said(found.task, one);
      return row;
    });
    part("answers").querySelector("tbody").replaceChildren(...rows);
    part("caption").textContent = label + (found.draws === null ? "" : `: means over ${found.draws} networks, ± one standard deviation`);
    part("answers").hidden = false;
    part("status").textContent = `${rows.length === 1 ? "One image" : `${rows.length} images`} answered in ${found.seconds.toFixed(1)} s.`;
  } catch (error) {
    part("status").textContent = "";
    if (!(error instanceof Refused)) throw error;
    fault.textContent = error.message;
    fault.hidden = false;
  } finally {
    button.disabled = false;
  }
}
