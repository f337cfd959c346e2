// Generate with onnxruntime-web in headless Chromium, once with each build.
import { createReadStream } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { chromium } from "playwright-core";

const TYPES = { ".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const FLAGS =
  "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking " +
  "--disable-component-update --disable-sync";

const request = JSON.parse(process.argv[2]);
const { folder, files = [], ids, count, builds = {}, script, browser: executablePath } = request;

// Files of the export under /out/, the installed packages under /node_modules/.
const server = createServer((request, response) => {
  const path = decodeURIComponent(request.url);
  response.setHeader("Content-Type", TYPES[extname(path)] ?? "application/octet-stream");
  if (path === "/index.html") return response.end("<!doctype html><title>gpt2kit</title>");
  const file = path.startsWith("/out/") ? join(folder, path.slice(5)) : join(import.meta.dirname, path);
  return createReadStream(file)
    .on("error", () => response.writeHead(404).end())
    .pipe(response);
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));

// Runs in the page.
async function generate({ module, file, ids, count }) {
  const ort = await import(module);
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(`/out/onnx/${file}`, { executionProviders: ["wasm"] });
  const integers = (numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  const empty = { float32: () => new Float32Array(0), float16: () => new Uint16Array(0) };
  let past = {};
  for (const { name, type, shape } of session.inputMetadata) {
    if (!name.startsWith("past_key_values")) continue;
    past[name] = new ort.Tensor(type, empty[type](), [1, shape[1], 0, shape[3]]);
  }
  const tokens = [], rows = [];
  for (let chunk = ids, total = ids.length; tokens.length < count; total += 1) {
    const outputs = await session.run({
      input_ids: integers(chunk),
      attention_mask: integers(Array(total).fill(1)),
      position_ids: integers(chunk.map((_, i) => total - chunk.length + i)),
      ...past,
    });
    const { data, dims } = outputs.logits;
    const row = Array.from(data.slice(-dims[2]));
    rows.push(row);
    tokens.push(row.indexOf(row.reduce((a, b) => Math.max(a, b))));
    chunk = tokens.slice(-1);
    for (const name in past) past[name] = outputs[name.replace("past_key_values", "present")];
  }
  await session.release();
  return { file, tokens, logits: rows };
}

const browser = await chromium.launch({ executablePath, args: FLAGS.split(" ") });
try {
  if (script) {
    // A page that shows its answer.
    const page = await browser.newPage();
    page.on("pageerror", (error) => console.error(error));
    await page.goto(`http://127.0.0.1:${server.address().port}/index.html`);
    await page.addScriptTag({ type: "module", content: script });
    await page.waitForFunction(() => document.body.textContent);
    console.log(await page.textContent("body"));
  }
  for (const [build, module] of Object.entries(builds)) {
    const page = await browser.newPage();
    page.on("pageerror", (error) => console.error(build, error));
    await page.goto(`http://127.0.0.1:${server.address().port}/index.html`);
    for (const file of files) {
      console.log(JSON.stringify({ build, ...(await page.evaluate(generate, { module, file, ids, count })) }));
    }
    await page.close();
  }
} finally {
  await browser.close();
  server.close();
}
