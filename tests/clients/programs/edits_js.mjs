// Feed the inputs of an edit from JavaScript, with onnxruntime-node and onnxruntime-web.
import * as node from "onnxruntime-node";
import * as web from "onnxruntime-web";

const { path, tap, ids } = JSON.parse(process.argv[2]);
for (const [runtime, ort] of Object.entries({ node, web })) {
  const session = await ort.InferenceSession.create(path);
  const row = (numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  const feeds = { input_ids: row(ids), attention_mask: row(ids.map(() => 1)), position_ids: row(ids.map((_, i) => i)) };
  for (const { name, shape } of session.inputMetadata) {
    if (!name.startsWith("past_key_values")) continue;
    feeds[name] = new ort.Tensor("float32", new Float32Array(0), [1, shape[1], 0, shape[3]]);
  }
  for (const [part, value] of Object.entries({ keep: 0.5, add: 0.25 })) {
    feeds[`${tap}.${part}`] = new ort.Tensor("float32", Float32Array.of(value), [1, 1, 1]);
  }
  let said;
  try {
    const { logits } = await session.run(feeds);
    said = { logits: Array.from(logits.data.slice(-logits.dims[2])) };
  } catch (error) {
    said = { error: String(error) };
  }
  console.log(JSON.stringify({ runtime, ...said }));
}
