"""The index of an image set: files, checks, labels and split."""
