"""Methods that learn from another network."""
