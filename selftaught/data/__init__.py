"""Images on disk as batches of uint8 pixels."""
