"""What predictions are worth: metrics, comparisons, the paper's numbers, the report. Starts where predictions exist; runs no model."""
