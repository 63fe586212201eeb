"""Quantized model -> ONNX Q/DQ graph."""
