"""What a run has to show: an HTML page (page.py), terminal tables (table.py) and the pictures of a
run (album.py).
"""
