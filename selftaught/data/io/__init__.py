"""Files on disks and networks: names, checks, threads."""
