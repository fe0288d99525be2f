"""Training of one stage in a run folder."""
