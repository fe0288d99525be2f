"""Which images there are: found, checked, labelled and split."""
