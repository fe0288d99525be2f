"""Methods that make images: from damaged copies of them, or from codes."""
