"""train, quickstart."""
def train() -> None:
    """Placeholder."""
def quickstart() -> None:
    """Placeholder."""
