"""Properties that every method and every hard example must have."""
