"""Compression: a smaller network, trained on, from a trained one."""
