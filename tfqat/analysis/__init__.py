"""Sensitivity analysis: which layers lose accuracy by quantization, and the placement that follows."""
