"""From files on disk to views on the device."""
