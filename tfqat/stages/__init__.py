"""The stages of a run: the quantized model, the graph, the engine. `tfqat.pipeline` puts them in order."""
