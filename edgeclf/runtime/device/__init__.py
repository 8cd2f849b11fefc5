"""The device itself: what it has, how it does, and what was measured on it."""
