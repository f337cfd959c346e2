"""Generate with onnxruntime-genai, with each file in place of that of genai_config.json."""

import json
import sys

import onnxruntime_genai as og

request = json.loads(sys.argv[1])
for file in request["files"]:
    config = og.Config(request["folder"])
    config.overlay(json.dumps({"model": {"decoder": {"filename": f"onnx/{file}"}}}))
    model = og.Model(config)
    ids = og.Tokenizer(model).encode(request["text"])
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=len(ids) + request["count"], do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(ids)
    logits = []
    while not generator.is_done():
        logits.append(generator.get_logits()[0, -1].tolist())
        generator.generate_next_token()
    ids = [int(token) for token in ids]
    tokens = [int(token) for token in generator.get_sequence(0)[len(ids) :]]
    print(json.dumps({"file": file, "ids": ids, "tokens": tokens, "logits": logits}))
