"""Import: models that were made elsewhere."""
