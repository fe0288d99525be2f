"""Pretext tasks: a question about one image whose answer is known from how it was changed."""
