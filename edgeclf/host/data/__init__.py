"""Data sets: found, read, cached, sharded, drawn, and what is in them."""
