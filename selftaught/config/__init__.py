"""What a stage is, as values."""
