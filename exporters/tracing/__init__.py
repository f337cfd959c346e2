"""From the torch module to an ONNX graph."""
