"""The report: every file measured beside the full model."""
