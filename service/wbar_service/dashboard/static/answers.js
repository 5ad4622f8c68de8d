// What a network answered about a picture: in words, and drawn over its thumbnail.

const TINT = 0.5;  // of what lies over a picture
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const number = (value) => String(Number(value.toPrecision(7)));
const spread = (value, shown) => (value === null || value === undefined ? "" : ` ± ${shown(value)}`);
const colour = (index) => `hsl(${(index * 137) % 360} 90% 45%)`;

const WORDS = {
  classes: (one) => one.top.map((each) => `${each.label} ${percent(each.probability)}${spread(each.deviation, percent)}`),
  attributes: (one) => Object.entries(one.attributes).map(([name, [best]]) => `${name}: ${best.label} ${percent(best.probability)}${spread(best.deviation, percent)}`),
  regression: (one) => Object.entries(one.values).map(([name, value]) => `${name} ${number(value)}${spread(one.deviations?.[name], number)}`),
  segmentation: (one) => Object.entries(one.shares).filter(([, share]) => share > 0).sort((a, b) => b[1] - a[1]).map(([name, share]) => `${name} ${percent(share)}`),
  detection: (one) => (one.boxes.length ? one.boxes.map((box) => `${box.label} ${percent(box.score)}`) : ["nothing with a score of 50 %"]),
};

export const said = (task, one) => (WORDS[task] ?? WORDS.classes)(one).join(" · ");

// Numbers in groups of five bits, the lowest first; from the fourth on each is a difference to the one two before it.
function runs(text) {
  const found = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, group;
    do {
      group = text.charCodeAt(at++) - 48;
      value |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16 && shift < 32) value |= -1 << shift;
    found.push(value + (found.length > 2 ? found[found.length - 2] : 0));
  }
  return found;
}

// Pixels outside and inside in turn, down one column after another.
function fillMask(context, mask, scale) {
  const height = mask.size[0];
  let at = 0;
  runs(mask.counts).forEach((run, i) => {
    const end = at + run;
    while (i % 2 && at < end) {
      const column = Math.floor(at / height), row = at % height, length = Math.min(end - at, height - row);
      context.fillRect(column * scale, row * scale, scale, length * scale);
      at += length;
    }
    at = end;
  });
}

function drawBoxes(context, boxes, classes, scale) {
  context.lineWidth = 2;
  context.font = "11px sans-serif";
  for (const { label, box: [left, top, right, bottom], mask } of boxes) {
    context.strokeStyle = context.fillStyle = colour(classes.indexOf(label));
    context.globalAlpha = TINT;
    if (mask) fillMask(context, mask, scale);
    context.globalAlpha = 1;
    context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
    context.fillText(label, left * scale + 3, Math.max(10, top * scale + 11));
  }
}

// Draw boxes, masks or classes over a thumbnail; of other tasks there is nothing to draw.
export async function drawn(canvas, found, one) {
  const context = canvas.getContext("2d");
  if (found.task === "detection") drawBoxes(context, one.boxes, found.classes, canvas.width / one.width);
  if (found.task !== "segmentation") return;
  const bytes = Uint8Array.from(atob(one.map), (character) => character.charCodeAt(0));
  const map = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  context.globalAlpha = TINT;
  context.imageSmoothingEnabled = false;
  context.drawImage(map, 0, 0, canvas.width, canvas.height);
  map.close();
}
