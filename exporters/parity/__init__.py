"""The gate: torch against ONNX, case by case."""
