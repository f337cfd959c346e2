"""Generate with optimum-onnx."""

import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

request = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(request["folder"])
inputs = tokenizer(request["text"], return_tensors="pt")
width = inputs.input_ids.shape[1]
for file in request["files"]:
    model = ORTModelForCausalLM.from_pretrained(request["folder"], subfolder="onnx", file_name=file)
    made = model.generate(
        **inputs,
        max_new_tokens=request["count"],
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    result = {
        "file": file,
        "ids": inputs.input_ids[0].tolist(),
        "tokens": made.sequences[0, width:].tolist(),
        "logits": [row[0].tolist() for row in made.logits],
    }
    print(json.dumps(result))
