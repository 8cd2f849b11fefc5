"""Sharded data sets: prepared pictures in TFRecord files with an index, on a disk here or in object storage."""
