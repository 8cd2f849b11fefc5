def inspect() -> None:
    """Placeholder."""
def models() -> None:
    """Placeholder."""
def devices() -> None:
    """Placeholder."""
