"""Is it worth it: a run's features beside those of random weights, by fixed protocols, with honest
intervals.
"""
