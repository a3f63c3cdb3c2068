"""Every published number has its command here: `python -m hepattn.bench NAME`."""
