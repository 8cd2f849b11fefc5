def report() -> None:
    """Placeholder."""
