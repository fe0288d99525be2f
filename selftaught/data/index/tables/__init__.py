"""Tables of labels, as people and programs write them."""
