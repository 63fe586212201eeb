"""The recipe: its schema, how it is read from YAML, the code that it refers to, and the QAT schedule that follows from it."""
