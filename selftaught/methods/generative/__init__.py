"""Methods that rebuild an image from a damaged copy of it."""
