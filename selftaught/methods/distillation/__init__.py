"""Methods whose pseudo-labels come from another trained network."""
