"""uint8 batches -> augmented views on the device."""
