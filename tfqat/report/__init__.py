"""The report: the results of a run directory as one HTML page that opens offline."""
