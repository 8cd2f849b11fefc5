"""Bulk classification: millions of pictures through a deployable file, into Parquet. Needs the extra `bulk`."""

from __future__ import annotations

from edgeclf.core.errors import MissingExtra

try:
    import fsspec as fsspec
    import pyarrow as pyarrow
except ImportError as error:
    raise MissingExtra.for_extra("bulk", f"'classify' needs {error.name}, which is not installed") from error
