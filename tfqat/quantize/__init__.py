"""Placement -> quantized model, by TFMOT configs, quantizers and scheme."""
