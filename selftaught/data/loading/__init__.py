"""Images read in order, as batches."""
