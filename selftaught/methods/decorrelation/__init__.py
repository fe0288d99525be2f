"""Methods that decorrelate the dimensions of embeddings."""
