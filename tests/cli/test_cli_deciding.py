"""Deciding, gating and comparing as a user meets them: options of `run`, limits fitted by `calibrate` and used everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.core.bundle import attach, read_bundle

Cli = Callable[..., Any]
NAMES = ("red-square", "green-disc", "blue-cross", "yellow-bars")
EACH = 12
OPTIONS = (
    "--threshold", "--unknown-by", "--smooth", "--votes", "--hysteresis", "--top",
    "--region", "--motion", "--every", "--max-fps", "--compare", "--save-disagreements",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, fixtures_folder: Path) -> Path:
    """Class folders of the shapes in ever more noise, so that answers are sure or not."""
    top, random = tmp_path_factory.mktemp("shapes"), np.random.RandomState(0)
    for part in ("val", "test"):
        for name in NAMES:
            folder, picture = top / part / name.replace("-", " "), cv2.imread(str(fixtures_folder / "pictures" / f"{name}.png"))
            folder.mkdir(parents=True)
            for i in range(EACH):
                noise = random.randint(0, 256, picture.shape)
                cv2.imwrite(str(folder / f"{i}.png"), (picture * (1 - i / EACH) + noise * (i / EACH)).astype(np.uint8))
    return top


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise and plain grey in two folders, and a file that is no picture."""
    top, random = tmp_path_factory.mktemp("others"), np.random.RandomState(1)
    for i in range(20):
        (top / str(i % 2)).mkdir(exist_ok=True)
        picture = random.randint(0, 256, (16, 16, 3)) if i % 2 else np.full((16, 16, 3), 8 * i)
        cv2.imwrite(str(top / str(i % 2) / f"{i}.png"), picture.astype(np.uint8))
    (top / "0" / "broken.jpg").write_bytes(b"no picture")
    return top


@pytest.fixture
def file(tmp_path: Path, fixtures_folder: Path) -> Path:
    return Path(shutil.copy(fixtures_folder / "tiny-int8.tflite", tmp_path / "shapes.tflite"))


@pytest.fixture
def video(tmp_path: Path, fixtures_folder: Path) -> Path:
    """A second of red square, then a second of blue cross, at 20 frames a second."""
    path = tmp_path / "two.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (320, 240))
    for name in ("red-square", "blue-cross"):
        picture = cv2.imread(str(fixtures_folder / "pictures" / f"{name}.png"))
        for _ in range(20):
            writer.write(cv2.resize(picture, (320, 240), interpolation=cv2.INTER_NEAREST))
    writer.release()
    return path


def summary_of(cli_here: Cli, *arguments: object) -> dict[str, Any]:
    answer = cli_here("run", *arguments, "--json")
    assert answer.code == 0, answer.text
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def other_card(path: Path, to: Path, **changes: Any) -> Path:
    bundle = read_bundle(path)
    assert bundle.card
    to.write_bytes(attach(bundle.model, replace(bundle.card, **changes)))
    return to


# calibrate


@pytest.mark.parametrize("by", ["probability", "margin", "energy"])
def test_a_limit_is_fitted_kept_and_used_alike_by_predict_run_and_evaluate(
    by: str, cli_here: Cli, file: Path, data: Path, others: Path
) -> None:
    """95% of the right validation answers stay; the three verbs call the same pictures unknown."""
    answer = cli_here("calibrate", file, data, "--unknown-by", by, "--others", others, "--json")
    assert answer.code == 0, answer.text
    turned = json.loads(answer.stdout)["fitted"][0]["turned"]
    assert turned["kept"] >= 0.95 * turned["right"] > 0
    assert (turned["others"], turned["rule"]["by"]) == (20, by)
    assert set(turned["auroc"]) == {"probability", "margin", "energy"}
    card = read_bundle(file).card
    assert card is not None
    assert card.unknown is not None
    assert card.unknown.limits == turned["rule"]["limits"]
    assert card.accuracy["fitted"]["unknown"]["others_turned_away"] == turned["others_turned_away"]
    pictures = sorted((data / "test").rglob("*.png"))
    predicted = json.loads(cli_here("predict", file, *pictures, "--json").stdout)["images"]
    unknown = sum(image["answer"] == "unknown" for image in predicted)
    run = summary_of(cli_here, file, "-s", data / "test")["labels"]
    evaluated = json.loads(cli_here("evaluate", file, data, "--json").stdout)
    assert 0 < unknown < len(pictures)
    assert run["unknown"] == unknown == len(pictures) - evaluated["with_thresholds"]["answered"]
    assert evaluated["unknown"]["by"] == by
    assert evaluated["accuracy"]["pictures"] == len(pictures)


def test_calibrate_says_what_the_limit_does(cli_here: Cli, file: Path, data: Path, others: Path) -> None:
    """To right answers, to wrong ones and to the other pictures, with an interval; what cannot be read is counted."""
    answer = cli_here("calibrate", file, data, "--unknown-by", "energy", "--keep", "0.9", "--others", others)
    assert answer.code == 0, answer.text
    assert "unknown below energy " in answer.stdout
    assert "right answers and " in answer.stdout
    assert "of 20 other pictures" in answer.stdout
    assert "AUROC probability 0." in answer.stdout
    assert "1 of the other pictures cannot be read" in answer.stderr
    assert "unknown below energy" in cli_here("evaluate", file, data).stdout


def test_a_calibration_without_a_limit_takes_it_out_again(cli_here: Cli, file: Path, data: Path) -> None:
    """Back to the very bytes of the export."""
    before = file.read_bytes()
    assert cli_here("calibrate", file, data, "--unknown-by", "margin").code == 0
    assert file.read_bytes() != before
    assert cli_here("calibrate", file, data, "--no-temperature").code == 0
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--unknown-by", "entropy"], 2, "expected one of probability, margin, energy"),
        (["--unknown-by", "margin", "--keep", "1.5"], 2, "--keep 1.5: must be above 0 and up to 1"),
        (["--unknown-by", "margin", "--keep", "nan"], 2, "--keep nan"),
        (["--keep", "0.9"], 2, "--keep is for --unknown-by"),
        (["--others", "."], 2, "--others is for --unknown-by"),
        (["--unknown-by", "margin", "--others", "nowhere"], 5, "nowhere: no such folder"),
    ],
)
def test_calibrate_refuses_what_cannot_be(
    arguments: list[str], code: int, message: str, cli_here: Cli, file: Path, data: Path
) -> None:
    """In one line; the file stays."""
    before = file.read_bytes()
    answer = cli_here("calibrate", file, data, *arguments)
    assert (answer.code, answer.stderr.count("\n")) == (code, 1), answer.text
    assert message in answer.stderr
    assert file.read_bytes() == before


def test_others_without_a_readable_picture_are_an_error(cli_here: Cli, file: Path, data: Path, tmp_path: Path) -> None:
    """Not a share of nothing."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jpg").write_bytes(b"no picture")
    answer = cli_here("calibrate", file, data, "--unknown-by", "margin", "--others", tmp_path / "none")
    assert answer.code == 5
    assert "none of 1 other pictures can be read" in answer.stderr


# run: answers


def test_votes_make_one_change_of_a_real_one(cli_here: Cli, file: Path, video: Path) -> None:
    """The first and the second scene, each once."""
    assert summary_of(cli_here, file, "-s", video, "--votes", "3/5")["changes"] == 2


def test_a_hysteresis_and_smoothing_are_taken(cli_here: Cli, file: Path, video: Path) -> None:
    """A lead that no answer can have holds the first one for ever."""
    assert summary_of(cli_here, file, "-s", video, "--hysteresis", "0.99")["changes"] == 1
    smoothed = summary_of(cli_here, file, "-s", video, "--smooth", "0.9")
    assert smoothed["changes"] == 2
    assert smoothed["labels"]["red square"] > 20


def test_a_measure_with_a_given_threshold_decides(cli_here: Cli, file: Path, video: Path) -> None:
    """Whatever the card says, in any measure."""
    for by, low, high in (("probability", 0, 1), ("margin", 0, 1), ("energy", -1e6, 1e6)):
        for threshold, unknown in ((low, 0), (high, 40)):
            labels = summary_of(cli_here, file, "-s", video, "--unknown-by", by, f"--threshold={threshold}")["labels"]
            assert labels.get("unknown", 0) == unknown


# run: which frames


def test_each_nth_frame_and_a_region_are_taken(cli_here: Cli, file: Path, video: Path) -> None:
    """Ten of forty frames; a corner of the white ground answers otherwise than the middle."""
    summary = summary_of(cli_here, file, "-s", video, "--every", 4)
    assert (summary["frames"], summary["gated"]) == (10, 30)
    whole = summary_of(cli_here, file, "-s", video)["labels"]
    corner = summary_of(cli_here, file, "-s", video, "--region", "0,0,24,24")["labels"]
    assert whole == {"red square": 20, "blue cross": 20}
    assert corner != whole
    assert summary_of(cli_here, file, "-s", video, "--region", "0,0,1,1")["labels"] == whole


def test_still_scenes_are_passed_over(cli_here: Cli, file: Path, video: Path) -> None:
    """Two scenes, two frames; with votes as many as these need."""
    assert summary_of(cli_here, file, "-s", video, "--motion", "0.02")["frames"] == 2
    voted = summary_of(cli_here, file, "-s", video, "--motion", "0.02", "--votes", "2/3")
    assert (voted["frames"], voted["changes"]) == (6, 2)


def test_so_many_frames_a_second_are_classified(cli_here: Cli, file: Path) -> None:
    """Of a camera that gives more."""
    summary = summary_of(cli_here, file, "-s", "synthetic", "--fps", 100, "--max-fps", 10, "--seconds", 1.5)
    assert 5 <= summary["frames"] <= 1 + 10 * summary["seconds"]
    assert summary["gated"] > 20


# run: two models


def test_a_second_model_is_compared_on_the_same_frames(cli_here: Cli, file: Path, video: Path, fixtures_folder: Path) -> None:
    """Both answers in each line, agreement with its interval and both latencies in the summary and in words."""
    full, out = fixtures_folder / "tiny-float32.tflite", video.with_suffix(".jsonl")
    found = summary_of(cli_here, file, "-s", video, "--compare", full, "--jsonl", out)["compared"]
    assert (found["frames"], found["agreed"], found["agreement"], found["not_compared"]) == (40, 40, 1.0, 0)
    assert 0.9 < found["interval"]["low"] < found["interval"]["high"] == 1
    assert min(found[who][key] for who in ("own", "classify") for key in ("p50_ms", "p90_ms")) > 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(line["other"]["agrees"] for line in lines if line["event"] == "label")
    words = cli_here("run", file, "-s", video, "--compare", full)
    assert (
        "compared with tiny-float32.tflite: the same answer to 100.0% of 40 frames (95% interval 91.2% to 100.0%)" in words.text
    )
    assert "= red square" in words.stdout


def test_frames_on_which_the_two_disagree_are_saved(cli_here: Cli, file: Path, video: Path, tmp_path: Path) -> None:
    """As JPEG and JSON, at most so many as the settings say; several sources and a gate do not matter."""
    card = read_bundle(file).card
    assert card is not None
    wrong = other_card(file, tmp_path / "wrong.tflite", labels=card.labels[::-1])
    kept = tmp_path / "kept"
    answer = cli_here(
        "run", file, "-s", video, "-s", "synthetic", "--max-frames", 30, "--every", 2, "--compare", wrong,
        "--save-disagreements", kept, "--set", "compare.per_minute=60000", "--set", "compare.most=3", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)["compared"]
    assert (found["frames"], found["agreed"]) == (30, 0)
    assert 1 <= found["saved"] <= 3
    assert len(list(kept.glob("*.jpg"))) == len(list(kept.glob("*.json"))) == found["saved"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--votes", "5/3"], 2, "votes = 5, of = 3"),
        (["--votes", "most"], 2, "--votes most: expected K/N, as in 3/5"),
        (["--region", "1,2,3"], 2, "--region 1,2,3: expected X,Y,W,H"),
        (["--region", "a,b,c,d"], 2, "--region a,b,c,d: expected X,Y,W,H"),
        (["--region", "0.5,0,0.6,1"], 2, "as shares of the picture"),
        (["--region", "630,0,20,20"], 2, "region 630,0,20,20 lies outside the picture of 640x480 pixels"),
        (["--motion", "1.5"], 2, "motion = 1.5: must lie in [0, 1)"),
        (["--every", "0"], 2, "every = 0: must be at least 1"),
        (["--max-fps", "-1"], 2, "max_fps = -1.0"),
        (["--threshold", "1.5"], 2, "must lie between 0 and 1 for the probability"),
        (["--threshold", "nan", "--unknown-by", "energy"], 2, "threshold = nan"),
        (["--unknown-by", "energy"], 2, "fit one with: edgeclf calibrate FILE --unknown-by energy"),
        (["--unknown-by", "entropy"], 2, "'entropy' is not one of: probability, margin, energy"),
        (["--hysteresis", "1"], 2, "hysteresis"),
        (["--compare", "nowhere.tflite"], 4, "nowhere.tflite: cannot be read"),
        (["--save-disagreements", "kept"], 2, "kept: frames on which two models disagree need a second model"),
    ],
)
def test_what_cannot_work_is_one_line_and_a_code(
    cli_here: Cli, file: Path, arguments: list[str], code: int, message: str
) -> None:
    """What was wrong and what to give instead; no traceback."""
    answer = cli_here("run", file, "-s", "synthetic", "--jsonl", file.with_suffix(".jsonl"), *arguments)
    assert answer.code == code, answer.text
    assert message in answer.stderr
    assert "Traceback" not in answer.text


def test_a_model_with_other_labels_is_not_compared(cli_here: Cli, file: Path, tmp_path: Path) -> None:
    """Exit code 4, both sides named, and no camera opened."""
    other = other_card(file, tmp_path / "other.tflite", labels=("red square", "green disc", "blue cross", "tree"))
    answer = cli_here("run", file, "-s", "synthetic", "--compare", other)
    assert (answer.code, answer.stderr.count("\n"), answer.stdout) == (4, 1, ""), answer.text
    assert "'tree' unknown to the first model, lacks 'yellow bars'" in answer.stderr


def test_a_settings_file_says_it_all_and_options_count_more(cli_here: Cli, file: Path, video: Path, tmp_path: Path) -> None:
    """The same names as in --set."""
    settings = tmp_path / "board.toml"
    settings.write_text(
        f'model = "{file}"\nsources = ["{video}"]\n[decide]\nvotes = 3\nof = 5\nunknown_by = "margin"\nthreshold = 1.0\n'
        "[gate]\nevery = 4\nregion = [0.0, 0.0, 1.0, 1.0]\n"
    )
    assert summary_of(cli_here, "--config", settings)["labels"] == {"unknown": 10}
    changed = summary_of(cli_here, "--config", settings, "--threshold", 0, "--every", 2)
    assert changed["labels"] == {"red square": 10, "blue cross": 10}


def test_every_option_stands_in_the_help(cli_here: Cli) -> None:
    """With its place among the others."""
    text = cli_here("run", "--help").text
    assert all(f"{option} " in text for option in OPTIONS)
    assert "--unknown-by" in cli_here("calibrate", "--help").text
