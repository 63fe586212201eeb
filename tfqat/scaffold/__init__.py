"""Starts a project: a recipe, its schema and a stub of the data code, made from a model's file or copied from an example."""
