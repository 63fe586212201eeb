"""Quantized model -> ONNX Q/DQ graph, and the proof that they agree."""
