def export() -> None:
    """Placeholder."""
