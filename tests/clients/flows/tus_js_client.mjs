// tus-js-client against a real service: whole, interrupted and gone on with, in parallel parts, with bytes at the creation,
// of unknown length, and terminated. Prints the sha256 of each checkpoint that was made of an upload.
import * as fs from "node:fs";
import { Readable } from "node:stream";
import * as tus from "tus-js-client";

const [url, key, file, urls] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${key}` };
const common = { endpoint: `${url}/v1/uploads`, headers, chunkSize: 65536, retryDelays: [0, 100, 500] };
const urlStorage = new tus.FileUrlStorage(urls);

function uploaded(options, source = fs.createReadStream(file)) {
  return new Promise((resolve, reject) => {
    const upload = new tus.Upload(source, {
      ...common,
      ...options,
      onError: reject,
      onSuccess: () => resolve(upload.url),
    });
    upload.start();
  });
}

// Ends the upload once some of it is there, and goes on from what the storage remembers.
async function interrupted() {
  const options = { ...common, urlStorage, metadata: { filename: "interrupted.pth" } };
  await new Promise((resolve, reject) => {
    const first = new tus.Upload(fs.createReadStream(file), {
      ...options,
      onError: reject,
      onChunkComplete: (size, accepted) => {
        if (accepted >= 3 * 65536) first.abort().then(resolve, reject);
      },
    });
    first.start();
  });
  let sent = 0;
  const url = await new Promise((resolve, reject) => {
    const second = new tus.Upload(fs.createReadStream(file), {
      ...options,
      onError: reject,
      onChunkComplete: (size) => (sent += size),
      onSuccess: () => resolve(second.url),
    });
    second.findPreviousUploads().then((previous) => {
      if (previous.length !== 1) reject(new Error(`${previous.length} uploads are remembered`));
      second.resumeFromPreviousUpload(previous[0]);
      second.start();
    }, reject);
  });
  const size = fs.statSync(file).size;
  if (sent > size - 3 * 65536) throw new Error(`${sent} of ${size} bytes were sent again`);
  return url;
}

async function made(upload) {
  const id = upload.split("/").pop();
  const answer = await fetch(`${url}/v1/checkpoints`, {
    method: "POST",
    headers: { ...headers, "Content-Type": "application/json" },
    body: JSON.stringify({ upload: id }),
  });
  const body = await answer.json();
  if (answer.status !== 201) throw new Error(JSON.stringify(body));
  return body.sha256;
}

const size = fs.statSync(file).size;
const ways = {
  whole: () => uploaded({ metadata: { filename: "whole.pth" } }),
  interrupted,
  parallel: () => uploaded({ parallelUploads: 3 }),
  creation: () => uploaded({ uploadDataDuringCreation: true }),
  // A stream without a path: of a file, whose size it knows, the client announces more in its last request than it sends.
  deferred: () => uploaded({ uploadLengthDeferred: true }, Readable.from(fs.readFileSync(file))),
  override: () => uploaded({ overridePatchMethod: true, uploadSize: size }),
};
for (const [name, way] of Object.entries(ways)) console.log(name, await made(await way()));

const terminated = await uploaded({});
await tus.Upload.terminate(terminated, { headers, retryDelays: [] });
const gone = await fetch(terminated, { method: "HEAD", headers: { ...headers, "Tus-Resumable": "1.0.0" } });
console.log("terminated", gone.status);
