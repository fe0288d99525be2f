"""Methods whose pseudo-labels are clusters."""
