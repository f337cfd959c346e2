"""Generate with OpenVINO."""

import json
import sys

import numpy as np
import openvino as ov


def generate(path: str, ids: list[int], count: int) -> tuple[list[int], list[list[float]]]:
    model = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    cached = [x for x in model.inputs if x.any_name.startswith("past_key_values")]
    past = {}
    for x in cached:
        _, heads, _, width = x.partial_shape
        past[x.any_name] = ov.Tensor(x.element_type, [1, heads.get_length(), 0, width.get_length()])
    request = model.create_infer_request()
    chunk, total, tokens, logits = ids, len(ids), [], []
    for _ in range(count):
        feeds = {
            "input_ids": np.array([chunk]),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - len(chunk), total)[None],
        }
        outputs = request.infer(feeds | past)
        logits.append(outputs["logits"][0, -1].copy())
        tokens.append(int(logits[-1].argmax()))
        past = {
            name: ov.Tensor(outputs[name.replace("past_key_values", "present")].copy())
            for name in past
        }
        chunk, total = tokens[-1:], total + 1
    return tokens, [row.tolist() for row in logits]


request = json.loads(sys.argv[1])
for file in request["files"]:
    tokens, logits = generate(f"{request['folder']}/onnx/{file}", request["ids"], request["count"])
    print(json.dumps({"file": file, "tokens": tokens, "logits": logits}))
