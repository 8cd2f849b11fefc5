"""Write the README's table of benchmarks from `tools/results/*.json`, which the other tools wrote.

    python tools/write_measured.py

Nothing is typed by hand: figures stand in the table as they stand in the files, with commas in large ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeclf.core import files

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "tools" / "results"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
HEAD = "measured", "found", "results, tool"
TOOLS = {
    "startup": "bench_startup.py", "frame": "bench_frame.py", "evaluate": "bench_evaluate.py",
    "training": "bench_training.py", "ingest": "bench_ingest.py", "calibration": "bench_calibration.py",
    "instructions": "count_instructions.py", "pipeline": "bench_pipeline.py", "frozen": "bench_frozen.py",
    "sparse": "bench_sparse.py", "live": "bench_live.py", "mediapipe": "bench_mediapipe.py", "web": "bench_web.py",
    "kill": "bench_kill.py", "fuzz": "fuzz_models.py", "classify": "bench_classify.py", "scale": "bench_scale.py",
    "shards": "bench_shards.py", "time_to": "bench_time_to.py",
}  # fmt: skip


def table(folder: Path = RESULTS) -> str:
    """The Markdown table, one row a measurement."""
    found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in TOOLS}
    rows = [(what, figures, f"`{name}.json`, `{TOOLS[name]}`") for name, what, figures in _figures(found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows))


def _figures(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name of the results file, what was measured, its figures)."""
    startup, evaluate, training = found["startup"]["median_s"], found["evaluate"], found["training"]
    return [
        (
            "startup",
            "`edgeclf --help`, the whole process, median",
            f"{startup['help']} s; the bare imports of Typer, NumPy, OpenCV and LiteRT {startup['bare_imports']} s",
        ),
        (
            "startup",
            "`edgeclf predict` on one picture, the whole process, median",
            f"{startup['predict']} s; {startup['predict_first']} s for a file that this machine never opened",
        ),
        *(("frame", *_frame(one)) for one in found["frame"]["files"]),
        (
            "evaluate",
            f"`edgeclf evaluate` on {evaluate['pictures']:,} pictures, {evaluate['workers']} cores against a plain loop on one",
            f"{evaluate['ratio_median']} times as fast",
        ),
        (
            "training",
            f"training speed of `{training['recipe']}` against a bare `fit` of the same network",
            f"{training['speed_against_bare_fit']} times as fast; {training['pictures_per_second']:,} pictures a second",
        ),
        ("time_to", *_time_to(found["time_to"])),
        (
            "frozen",
            f"an epoch of the head of `{found['frozen']['recipe']}` on features computed once, {found['frozen']['data']}",
            f"{found['frozen']['seconds_kept']} s; with features computed again {found['frozen']['seconds_recomputing']} s: "
            f"{found['frozen']['speed_against_recomputing']} times as fast",
        ),
        *(("pipeline", *_pipeline(one)) for one in found["pipeline"].values()),
        ("ingest", "peak memory of reading pictures into the cache", _memory(found["ingest"])),
        ("calibration", _calibrated(found["calibration"]["export"]), _memory(found["calibration"]["export"])),
        ("calibration", "the same with every picture", _memory(found["calibration"]["every"])),
        *(("sparse", *_sparse(name, one["files"])) for name, one in found["sparse"]["networks"].items()),
        *_live(found),
        *_classify(found["classify"]),
        *(("instructions", f"instructions of `{file}`, emulated Pi 4 and Pi 5", counts) for file, counts in _counts(found)),
    ]


def _frame(one: dict[str, Any]) -> tuple[str, str]:
    what = f"640×480 frame → label by `{one['file']}`, {one['threads']} thread, against the bare `invoke`"
    return what, f"{one['frame_ms']} ms against {one['invoke_ms']} ms"


def _time_to(result: dict[str, Any]) -> tuple[str, str]:
    what = f"CPU time of `{result['network']}` to {result['target']:.0%} on cifar10-jpeg, against plain AdamW with cosine"
    quick, plain = (
        f"{one['processor_seconds']:,} s, {max(one['top1']):.2%} after {one['epochs_trained']} epochs"
        for one in (result["quick"], result["plain"])
    )
    return what, f"{quick}; plain {plain}{'' if result['plain']['reached'] else ', its last: not reached'}"


def _pipeline(one: dict[str, Any]) -> tuple[str, str]:
    what = f"what a training step of `{one['recipe']}` waits for pictures, {one['data']} at {one['image_size']} px"
    flip_and_shift = one["policies"]["flip and shift"]
    return what, (
        f"{one['idle_share']:.1%} of {one['step_ms']} ms; flip and shift take {flip_and_shift['cpu_ms']} ms of CPU, "
        f"{flip_and_shift['share_of_step']:.1%} of a step's"
    )


def _calibrated(result: dict[str, Any]) -> str:
    return f"peak memory of calibration, {result['whole']['calibrated']:,} pictures drawn"


def _memory(result: dict[str, Any]) -> str:
    """The tools divide kilobytes of 1,024 bytes by 1,024, so what they call mb is MiB."""
    tenth, whole = result["tenth"], result["whole"]
    sizes = (f"{part['peak_mb']} MiB of {part['pictures']:,} pictures" for part in (tenth, whole))
    return f"{', '.join(sizes)}: {result['memory_ratio']} times"


def _sparse(name: str, files: dict[str, Any]) -> tuple[str, str]:
    """Of the network with four fifths of zeros: dense floats, sparse floats, dense int8."""
    rows = [files[f"0.8 {variant}"] for variant in ("float32", "float32-sparse", "int8")]
    pi4, pi5 = (", ".join(f"{row['instructions'][board]:,}" for row in rows) for board in ("pi4", "pi5"))
    sizes = ", ".join(f"{row['file_bytes'] / 1000:.0f}" for row in rows)
    what = f"`{name}`, 80% of each large kernel zero: float32, float32-sparse and int8"
    return what, f"files of {sizes} kB; instructions on the emulated Pi 4 {pi4}; on the Pi 5 {pi5}"


def _live(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the live loop costs and withstands."""
    live, rival, web, kill, fuzz = (found[name] for name in ("live", "mediapipe", "web", "kill", "fuzz"))
    loop, age, soak, memory = (live[part] for part in ("loop", "age", "soak", "memory"))
    watched = web["at"]["30 fps asked"]
    ours, theirs, ratio = rival["edgeclf"], rival["mediapipe"], rival["ratio"]
    return [
        (
            "live",
            f"`run` at 640×480 with JSON lines, `{live['file']}`, {live['threads']} thread: what is not the network",
            f"{loop['besides_invoke_share']:.1%} of an invoke of {loop['invoke_p50_ms']} ms",
        ),
        (
            "live",
            f"age of a frame at its label, camera at {age['interval_ms']} ms, network at {age['invoke_p50_ms']} ms",
            f"p50 {age['age_p50_ms']} ms, p99 {age['age_p99_ms']} ms",
        ),
        *(
            (
                "live",
                f"peak memory of `run {file}` at 640×480: alone, with every file sink, with the page, on an RTSP stream",
                ", ".join(str(kinds[kind]["peak_mb"]) for kind in ("plain", "files", "page", "rtsp")) + " MB",
            )
            for file, kinds in memory.items()
        ),
        (
            "live",
            f"memory over {soak['frames']:,} frames of 640×480",
            f"{soak['mb_per_million_frames']} MB a million frames, {soak['resident_mb']} MB at the end",
        ),
        (
            "mediapipe",
            f"`{rival['file']}` at {rival['fps']:g} fps, against MediaPipe's ImageClassifier in live mode",
            f"p50 {ours['p50_ms']} against {theirs['p50_ms']} ms ({ratio['p50_ms']} times), p99 {ratio['p99_ms']} times, "
            f"peak memory {ours['peak_mb']:.0f} against {theirs['peak_mb']:.0f} MB",
        ),
        (
            "web",
            f"rate of `run` at 30 fps with {web['clients']} watching its page, against none",
            f"{watched['ratio']} times (middle half of {watched['rounds']} rounds {watched['ratio_middle_half'][0]} to "
            f"{watched['ratio_middle_half'][1]})",
        ),
        (
            "kill",
            f"{kill['kills']} times `kill -9` while all files are written",
            f"{sum(kill['torn'].values())} torn files, {kill['last_lines_cut_short']} last line cut short",
        ),
        (
            "fuzz",
            f"{fuzz['opened']:,} altered model files opened",
            f"{len(fuzz['unforeseen'])} crashes or unclear errors, {fuzz['descriptors_left']} descriptors left",
        ),
    ]


def _classify(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Bulk classification; what is by CPU time holds on a busy machine too."""
    ray, memory, raylet, kills, growth = (found[part] for part in ("ray", "memory", "raylet", "kills", "growth"))
    sizes = memory["resident_mb"]
    rows = [
        (
            f"`classify` of {one['what']}, two cores against one, without the start",
            f"{one['two_cores_against_one']} times as fast, {one['two_cores_against_one_by_cpu']} by CPU time; "
            f"{one['against_bare_by_cpu']} times a bare loop of decode, resize and invoke; "
            f"{one['pictures_per_cpu_second']:,} pictures a CPU second",
        )
        for one in found["cores"]
    ]
    rows += [
        (
            f"`classify --engine ray` on {ray['pictures']:,} pictures against the local engine, without the start",
            f"{ray['ray_against_local']} times as fast; the start takes {ray['startup_s']['ray']} against "
            f"{ray['startup_s']['local']} s",
        ),
        (
            f"memory of `classify` over {memory['inputs']:,} inputs, all its processes",
            f"{sizes['after_50,000']} MiB after 50,000, {sizes['most_after']} at most "
            f"({memory['most_against_after_50,000']} times)",
        ),
        (
            f"one of two raylets killed half-way through {raylet['pictures']:,} pictures",
            f"exit code {raylet['exit_code']}; rows {'as' if raylet['same_rows'] else 'not as'} undisturbed",
        ),
        (
            f"`classify` of {kills['inputs']:,} pictures, {kills['kills']} times `kill -9` and given again",
            f"{kills['lost']} lost, {kills['twice']} twice",
        ),
        (
            "60,000 pictures against 6,000, without the start",
            f"{growth['ten_times_the_pictures_take_cpu']} times the CPU time",
        ),
    ]
    return [("classify", *row) for row in rows]


def _counts(found: dict[str, Any]) -> list[tuple[str, str]]:
    pi4, pi5 = found["instructions"]["pi4"], found["instructions"]["pi5"]
    return [(file, f"{pi4[file]:,} and {pi5[file]:,}") for file in pi4]


def main() -> None:
    readme = REPOSITORY / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    files.write_text(readme, f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
