"""Choosing: recipes, folds and files, by many trials."""
