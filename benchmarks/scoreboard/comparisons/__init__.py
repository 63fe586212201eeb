"""The comparisons. Each has TITLE, ABOUT, `measure`, which returns its entry in the file of figures, and `tables` and `contests` of it."""
