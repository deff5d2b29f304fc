"""What the records of a run show: metrics, intervals, tables, plots, and the comparison of two runs."""
