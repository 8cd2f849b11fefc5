"""What a model knows, looks at, and gets wrong."""
