"""The experiments of hierarchical pretraining (Reed et al., 2021), on any images."""
