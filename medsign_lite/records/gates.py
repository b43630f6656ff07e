"""Every gate of the shipped weights, measured again on a fresh, seeded sample.

    python -m medsign_lite.records.gates --data build/gates/phantoms
    python -m medsign_lite.records.gates --data build/gates/phantoms_full --record --images 500

One line per gate: its name, what is required, what was measured with its 95 % interval, and "pass"
or "short"; then whether the figures agree with those recorded under results/. The exit status is 1
if a gate falls short or a figure disagrees. `--record` writes those files; it keeps every finished
part under --work, so a run that was killed goes on when the same command is given again.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from medsign_lite.latent_diffusion import BUNDLED
from medsign_lite.records.agreement import agrees
from medsign_lite.records.gate_measurements import MEASUREMENTS as OF_WEIGHTS
from medsign_lite.records.gate_measurements import Sample
from medsign_lite.records.gate_verdicts import Gate, judge, shown
from medsign_lite.records.kept_parts import kept, kept_path
from medsign_lite.records.scale_measurements import manifest, processes
from medsign_lite.records.table1_gates import TABLE1_GATES, judge_table1
from medsign_lite.records.table2_gates import TABLE2_GATES, judge_table2
from medsign_lite.results import ROOT, read_result, write_json
from medsign_lite.rows import with_interval
from medsign_lite.training.processor import tune_processor

RESULTS = ROOT / "results"
REAL_DATA = ROOT.parent / "shared" / "data"
MEASUREMENTS = OF_WEIGHTS | {"manifest": manifest, "processes": processes}
ATTACKS = ("brightness", "crop", "jpeg", "rotation", "resize")


def _of_modality(modality: str) -> list[Gate]:
    generated, marked = f"generation_{modality}", f"watermark_{modality}"

    def gate(name: str, measurement: str, figure: str, required: float, **options) -> Gate:
        name = f"{modality}: {name}"
        return Gate(name=name, measurement=measurement, figure=figure, required=required, **options)

    return [
        gate("reconstruction, dB", f"reconstruction_{modality}", "psnr", 34),
        gate("named finding found", generated, "found", 0.90),
        gate("named side shown", generated, "side", 0.95),
        gate("bits, no attack", marked, "none", 0.99),
        *(gate(f"bits, {attack}", marked, attack, 0.90) for attack in ATTACKS),
        gate("watermark, dB", marked, "psnr", 38),
        gate("watermark, SSIM", marked, "ssim", 0.95),
        gate("finding spared, dB", marked, "psnr_gap", 3),
        gate("classifier change x 100", marked, "change", 1.0, direction="at most"),
    ]


GATES = [
    Gate(name="shipped weights, MiB", measurement="weights", figure="size", required=40,
         direction="at most"),
    Gate(name="attention CNR", measurement="localisation", figure="cnr", required=1.1),
    Gate(name="attention AUC", measurement="localisation", figure="auc", required=0.85),
    Gate(name="attention on the right side", measurement="localisation", figure="side_correct",
         required=0.95),
    Gate(name="CNR over shuffled token", measurement="localisation",
         figure="margin_shuffled_token", required=0, whole=True),
    # Findings that are always in one place are left out: `fixed_places` says which and why.
    Gate(name="CNR over anatomical prior, movable", measurement="localisation",
         figure="margin_anatomical_prior_movable", required=0, whole=True),
    *_of_modality("chest"),
    *_of_modality("fundus"),
    Gate(name="100,000 rows of a manifest, MiB", measurement="manifest", figure="peak",
         required=1024, direction="at most", tolerance=0.05),
    Gate(name="two processes, share off", measurement="processes", figure="difference",
         required=1e-3, direction="at most"),
]  # fmt: skip
# Read from what `benchmarks.real_decoder` recorded: to measure them takes real images, and hours.
RECORDED_GATES = [
    Gate(name=f"real decoder, {extractor}: {name}", measurement=f"real_decoder_{extractor}",
         figure=key, required=required)
    for extractor in ("published", "own")
    for name, key, required in (("bits, no attack", "bit_accuracy", 0.99),
                                   ("watermark, dB", "psnr", 38),
                                   ("outline spared, dB", "psnr_gap", 4))
]  # fmt: skip


def measure(
    sample: Sample, names: Iterable[str], *, keep: Path | None = None, again: bool = False
) -> dict[str, dict]:
    """Figures of measurements by name. With `keep`, each finished one is kept there and, but for
    `again`, not repeated, with what it was measured of: other weights are measured anew."""
    figures = {}
    for name in dict.fromkeys(names):
        if keep is None:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            figures[name] = MEASUREMENTS[name](sample)
        else:
            config = sample.config(name)
            one = partial(MEASUREMENTS[name], sample)
            figures[name] = kept(keep, name, config, one, again=again)["values"]
    return figures


def judge_recorded(gates: Sequence[Gate], folder: Path, *, data: Path = REAL_DATA) -> bool:
    """As `judge`, of what is only recorded. Where neither the record nor the data to make it with
    are there, the gates are skipped, and it says so."""
    passed = True
    for name in dict.fromkeys(gate.measurement for gate in gates):
        own, path = [gate for gate in gates if gate.measurement == name], folder / f"{name}.json"
        if path.is_file():
            trained = read_result(path)["values"]["trained"]
            row = trained["quality"] | trained["attacks"][0]
            figures = {gate.figure: with_interval(row, gate.figure) for gate in own}
            passed &= judge(own, {name: figures})
        elif data.is_dir():
            print(f"{name}: not recorded yet; python -m benchmarks.real_decoder records it")
            passed = False
        else:
            print(f"{name}: skipped, not recorded and no real images at ../shared/data")
    return passed


def compare(
    gates: Sequence[Gate],
    figures: Mapping[str, Mapping],
    folder: Path,
    *,
    weights: Mapping[str, str | None],
) -> bool:
    """Print which gates' figures disagree with the recorded ones; True if none does.

    weights: fingerprint of those that each measurement looked at; figures recorded of others
        disagree in any case.
    """
    fine = True
    for gate in gates:
        path = folder / f"{gate.measurement}.json"
        document = read_result(path) if path.is_file() else None
        if document is None or document["config"].get("weights") != weights[gate.measurement]:
            why = "nothing is recorded" if document is None else "recorded of other weights"
            print(f"{gate.name:40} {path.name}: {why}")
            fine = False
            continue
        recorded = document["values"].get(gate.figure)
        fresh = figures[gate.measurement].get(gate.figure)
        if (recorded is None) != (fresh is None) or (
            fresh and not agrees(fresh, recorded, tolerance=gate.tolerance)
        ):
            texts = ["nothing" if x is None else shown(x) for x in (recorded, fresh)]
            print(f"{gate.name:40} recorded {texts[0]}, now {texts[1]}: they disagree")
            fine = False
    if fine:
        print(f"all {len(gates)} figures agree with the recorded ones")
    return fine


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.records.gates", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="manifest of held-out phantoms")
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent)
    parser.add_argument("--images", type=int, help="per modality; default 200, or 500 to record")
    parser.add_argument("--seed", type=int, help="default 1, or 0 to record")
    parser.add_argument("--steps", type=int, default=25, help="of the sampler")
    parser.add_argument("--work", type=Path, help="generated samples and finished parts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the recorded figures")
    parser.add_argument("--record", action="store_true", help="write the recorded figures")
    parser.add_argument("--again", action="store_true", help=(
        "with --record: measure also what an earlier run has kept"))  # fmt: skip
    parser.add_argument("--only", nargs="+", default=list(MEASUREMENTS), choices=MEASUREMENTS)
    options = parser.parse_args(arguments)
    tune_processor()
    sample = Sample(
        data=options.data,
        weights=options.weights,
        images=options.images or (500 if options.record else 200),
        seed=options.seed if options.seed is not None else (0 if options.record else 1),
        steps=options.steps,
        work=options.work or ROOT / "build" / "gates" / ("recorded" if options.record else "fresh"),
    )
    gates = [gate for gate in GATES if gate.measurement in options.only]
    keep = sample.folder / "parts" if options.record else None
    figures = measure(sample, options.only, keep=keep, again=options.again)
    passed = judge(gates, figures)
    if options.only == list(MEASUREMENTS):
        passed &= judge_recorded(RECORDED_GATES, options.results)
        passed &= judge_table1(TABLE1_GATES, options.results)
        passed &= judge_table2(TABLE2_GATES, options.results)
    if options.record:
        for name in figures:  # with the commit and the time at which it was measured
            document = read_result(kept_path(keep, name, sample.config(name)))
            write_json(options.results / f"{name}.json", document)
        print(f"recorded: {', '.join(figures)}")
        return 0 if passed else 1
    weights = {name: sample.config(name)["weights"] for name in figures}
    agreed = compare(gates, figures, options.results, weights=weights)
    return 0 if passed and agreed else 1


if __name__ == "__main__":
    sys.exit(main())
