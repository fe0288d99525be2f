"""The experiments of hierarchical pretraining (Reed et al., 2021), on anybody's images: what is
tried, done, and drawn.
"""
