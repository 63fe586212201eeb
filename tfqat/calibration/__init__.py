"""Ranges from data: histograms, observers, calibrators."""
