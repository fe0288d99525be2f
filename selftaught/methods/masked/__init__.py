"""Masked images: the pixels of hidden parts of an image, predicted from the visible ones."""
