"""The parity check: torch against ONNX, case by case."""
