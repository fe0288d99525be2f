"""Contrastive methods: views of one image are positives, those of other images negatives."""
