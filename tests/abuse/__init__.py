"""Inputs that are broken, odd or malicious, and machines that fail: each ends well, or is refused
in one line.
"""
