def predict() -> None:
    """Placeholder."""
def evaluate() -> None:
    """Placeholder."""
def bench() -> None:
    """Placeholder."""
