"""edgeclf's own wheel, from what is installed here: built from a checkout, or packed again from the installed files."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from edgeclf.core.errors import ConfigError, EdgeclfError
from edgeclf.core.text import printable

BUILD_SECONDS = 300
EPOCH = (2020, 2, 2, 0, 0, 0)  # equal contents make equal bytes, which is how a board sees that nothing changed
LEFT_OUT = "INSTALLER", "REQUESTED", "direct_url.json", "RECORD", "uv_cache.json"


def own_wheel(folder: Path) -> Path:
    """Write the wheel of the edgeclf that runs now into `folder`. Raises EdgeclfError when it cannot be built."""
    try:
        installed = distribution("edgeclf")
    except PackageNotFoundError as error:
        raise ConfigError("edgeclf is not installed here as a package; give its wheel: --wheel edgeclf-….whl") from error
    source = _checkout(installed)
    return _built(source, folder) if source else packed(installed, folder)


def _checkout(installed: Distribution) -> Path | None:
    """The folder of an editable installation."""
    told = installed.read_text("direct_url.json")
    where = json.loads(told) if told else {}
    if not where.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(where["url"]).path))


def _built(source: Path, folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as made:
        command = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
        ]
        try:
            done = subprocess.run(
                [*command, "--wheel-dir", made, str(source)], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EdgeclfError(f"{source}: building the wheel took more than {BUILD_SECONDS} s") from error
        wheels = list(Path(made).glob("edgeclf-*.whl"))
        if done.returncode or len(wheels) != 1:
            last = (done.stderr.strip().splitlines() or ["no wheel came out"])[-1]
            raise EdgeclfError(
                f"{source}: the wheel cannot be built: {printable(last)}; try: pip install hatchling, or give --wheel"
            )
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / wheels[0].name
        target.write_bytes(wheels[0].read_bytes())
    return target


def packed(installed: Distribution, folder: Path) -> Path:
    """The wheel that `installed` came from, made again from its files; compiled files and scripts are left out."""
    name, version = installed.metadata["Name"].replace("-", "_"), installed.version
    tags = [
        line.partition(":")[2].strip() for line in (installed.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")
    ]
    if not tags or installed.files is None:
        raise ConfigError(f"{name}: installed without a record of its files; give its wheel: --wheel")
    files = sorted(
        (str(path), Path(str(path.locate())))
        for path in installed.files
        if path.parts[0] != ".." and path.suffix != ".pyc" and path.name not in LEFT_OUT
    )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{version}-{tags[0]}.whl"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, path in files:
            data = path.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow((inside, f"sha256={digest}", len(data)))
            archive.writestr(_entry(inside), data)
        inside = f"{name}-{version}.dist-info/RECORD"
        rows.writerow((inside, "", ""))
        archive.writestr(_entry(inside), record.getvalue())
    return target


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
    return entry
