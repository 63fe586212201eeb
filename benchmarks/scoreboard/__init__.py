"""tfqat and its peers on the same models, data and machine: one module for each tool, one for each comparison."""
