// The flow with the types that openapi-typescript makes and openapi-fetch, compiled with `strict`.
import { readFile, writeFile } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./wbar.js";

type Schemas = components["schemas"];
const [url, key, start, weights] = process.argv.slice(2);
if (!url || !key || !start || !weights) throw new Error("usage: URL KEY CHECKPOINT WEIGHTS");
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

function given<T>(answer: { data?: T; error?: Schemas["Problem"] }): T {
  if (answer.data === undefined) throw new Error(answer.error?.detail);
  return answer.data;
}

async function uploaded(path: string): Promise<Schemas["Checkpoint"]> {
  const bytes = await readFile(path);
  const answer = await client.POST("/v1/checkpoints", {
    params: { query: { name: "generated" } },
    // `format: binary` is a string in these types; what is sent are the bytes.
    body: bytes as unknown as string,
    bodySerializer: (body) => body,
    headers: { "Content-Type": "application/octet-stream" },
  });
  let checkpoint = given(answer);
  while (checkpoint.status === "processing") {
    await setTimeout(100);
    const params = { path: { checkpoint_id: checkpoint.id } };
    checkpoint = given(await client.GET("/v1/checkpoints/{checkpoint_id}", { params }));
  }
  return checkpoint;
}

async function named(source: string): Promise<Schemas["Dataset"]> {
  let dataset = given(await client.POST("/v1/datasets", { body: { source, max_train_images: 200 } }));
  while (dataset.status === "processing") {
    await setTimeout(100);
    dataset = given(await client.GET("/v1/datasets/{dataset_id}", { params: { path: { dataset_id: dataset.id } } }));
  }
  return dataset;
}

async function trained(checkpoint: string, dataset: string): Promise<Schemas["Job"]> {
  // Nothing but what is chosen has to be named: no default makes a field required.
  const method = { type: "cyclic_swa", cycles: 1, low: { lr: 0.001 } } as const;
  const body = { checkpoint, dataset, method, recipe: { optimizer: { betas: [0.8, 0.9] } } };
  let job = given(await client.POST("/v1/jobs", { body }));
  while (job.status === "queued" || job.status === "running") {
    await setTimeout(100);
    job = given(await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: job.id ?? "" } } }));
  }
  // The discriminator narrows the union.
  if (job.method.type !== "cyclic_swa" || job.method.cycles !== 1) throw new Error(JSON.stringify(job.method));
  return job;
}

const checkpoint = await uploaded(start);
const dataset = await named("builtin:digits");
const missing = await client.POST("/v1/jobs", { body: { checkpoint: "ckpt_none", dataset: dataset.id } });
if (missing.error?.code !== "not_found") throw new Error(JSON.stringify(missing));
const job = await trained(checkpoint.id, dataset.id);
const params = { path: { job_id: job.id ?? "" } };
const file = await client.GET("/v1/jobs/{job_id}/weights", { params, parseAs: "arrayBuffer" });
if (file.data === undefined) throw new Error(file.error.detail);
await writeFile(weights, new Uint8Array(file.data));
console.log(JSON.stringify({ job: job.id }));
