// Generate with transformers.js under node: the pipeline, and `generate` with its cache.
import { env, LogitsProcessor, LogitsProcessorList, pipeline } from "@huggingface/transformers";

const DTYPES = { "model.onnx": "fp32", "model_fp16.onnx": "fp16", "model_int8.onnx": "int8", "model_quantized.onnx": "q8" };

class Recorder extends LogitsProcessor {
  rows = [];
  _call(ids, logits) {
    this.rows.push(Array.from(logits.data));
    return logits;
  }
}

const { folder, files, text, count } = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = "/";
for (const file of files) {
  const generator = await pipeline("text-generation", folder, { dtype: DTYPES[file] });
  const options = { max_new_tokens: count, do_sample: false };
  const [{ generated_text }] = await generator(text, options);
  const inputs = generator.tokenizer(text);
  const recorder = new Recorder();
  const processors = new LogitsProcessorList();
  processors.push(recorder);
  const made = await generator.model.generate({ ...inputs, ...options, logits_processor: processors });
  const ids = inputs.input_ids.tolist()[0].map(Number);
  const tokens = made.tolist()[0].map(Number).slice(ids.length);
  console.log(JSON.stringify({ file, text: generated_text, ids, tokens, logits: recorder.rows }));
  await generator.dispose();
}
