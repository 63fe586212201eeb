"""Fine-tuning with quantization in the loop, and evaluation."""
