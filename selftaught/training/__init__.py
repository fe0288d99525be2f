"""Training: one stage in a run folder."""
