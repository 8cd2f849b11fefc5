"""Peak memory of exported files, each in a process of its own."""

from pathlib import Path

from edgeclf.host.report import memory


def test_what_a_file_takes_is_little_beside_its_runtime(fixtures_folder: Path) -> None:
    """A network of a few kilobytes: the runtime was imported before the model was opened, so it is not the model's."""
    found = memory.of_file(fixtures_folder / "tiny-int8.tflite", 1)
    assert found is not None
    assert 0 < found.model_bytes < found.process_bytes / 2


def test_a_file_that_does_not_open_has_none(tmp_path: Path) -> None:
    """The report goes on without the figure."""
    (tmp_path / "broken.tflite").write_bytes(b"TFL3")
    assert memory.of_file(tmp_path / "broken.tflite", 1) is None
