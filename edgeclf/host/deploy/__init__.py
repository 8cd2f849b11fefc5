"""Putting a classifier on boards."""
