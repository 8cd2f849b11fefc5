"""Optimize: the best file for a board, among many that are made and measured."""
