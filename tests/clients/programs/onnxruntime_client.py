"""Generate with onnxruntime alone."""

import json
import sys

import numpy as np
import onnxruntime as ort

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def generate(path: str, ids: list[int], count: int) -> tuple[list[int], list[list[float]]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    cached = [x for x in session.get_inputs() if x.name.startswith("past_key_values")]
    names = [output.name for output in session.get_outputs()]
    past = {x.name: np.zeros((1, x.shape[1], 0, x.shape[3]), DTYPES[x.type]) for x in cached}
    chunk, total, tokens, logits = ids, len(ids), [], []
    for _ in range(count):
        feeds = {
            "input_ids": np.array([chunk]),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - len(chunk), total)[None],
        }
        outputs = dict(zip(names, session.run(None, feeds | past), strict=True))
        logits.append(outputs["logits"][0, -1])
        tokens.append(int(logits[-1].argmax()))
        past = {x.name: outputs[x.name.replace("past_key_values", "present")] for x in cached}
        chunk, total = tokens[-1:], total + 1
    return tokens, [row.tolist() for row in logits]


def main() -> None:
    request = json.loads(sys.argv[1])
    for file in request["files"]:
        tokens, logits = generate(
            f"{request['folder']}/onnx/{file}", request["ids"], request["count"]
        )
        print(json.dumps({"file": file, "tokens": tokens, "logits": logits}))


if __name__ == "__main__":
    main()
