"""Contrastive methods: views of one image close together, those of others apart."""
