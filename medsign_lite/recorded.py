"""Everything that is recorded under results/: what is current, and how it is computed again.

    python -m medsign_lite.recorded --list
    python -m medsign_lite.recorded --data build/gates/phantoms5000/manifest.csv
    python -m medsign_lite.recorded --data MANIFEST --only attacker_chest table1_chest

A step is a command that records one file. It is current if the file was recorded of the weights as
they are, which the fingerprint in its configuration tells, and with the settings of the step. What
is current is not repeated, and each command keeps its finished parts, so that a run that was killed
goes on when the same command is given again. A step whose inputs are not here is passed over, and
says what it waits for.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsign_lite.adversary import attacker
from medsign_lite.checkpoints import weights_fingerprint
from medsign_lite.data import MODALITIES
from medsign_lite.records.gate_measurements import settings_of, weights_of
from medsign_lite.results import ROOT, read_result
from medsign_lite.tables import table1_weights, table2
from medsign_lite.tables.ablations import VARIANTS
from medsign_lite.tables.claims import SEEDS

WEIGHTS = ROOT / "medsign_lite" / "weights"
RESULTS = ROOT / "results"
IMAGES = 500  # of each modality, in a recorded figure


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command and the file that it records.

    Attributes:
        command: module and arguments after `python -m`. MANIFEST, RESULTS and WORK stand for the
            manifest, the folder of results and one for samples and parts, which is named after the
            pipeline's contents: commands that draw the same images find each other's.
        output: the file's name in results/.
        parts: sub-folders of the weights that its figures are of; None for all, () for none.
        settings: keys of the recorded configuration that have to have these values.
        needs: files or folders, seen from the repository, without which it cannot run.
    """

    command: str
    output: str
    parts: tuple[str, ...] | None = None
    settings: Mapping = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.output).stem


def _gate(name: str) -> Step:
    command = f"medsign_lite.records.gates --data MANIFEST --record --images {IMAGES} --only {name}"
    settings = {"images": IMAGES, "seed": 0}
    return Step(
        command=f"{command} --results RESULTS", output=f"{name}.json", parts=weights_of(name),
        settings={key: settings[key] for key in settings_of(name) if key in settings},
    )  # fmt: skip


def _of_modality(
    module: str,
    modality: str,
    *,
    parts: tuple[str, ...],
    needs: tuple = (),
    more: str = "",
) -> Step:
    name = module.split(".")[-1]
    command = (
        f"medsign_lite.{module} --modality {modality} --images {IMAGES} --data MANIFEST "
        f"--work WORK --out RESULTS/{name}_{modality}.json"
    )
    return Step(command=command + more, output=f"{name}_{modality}.json", needs=needs,
                parts=parts, settings={"images": IMAGES})  # fmt: skip


KINDS = ("reconstruction", "judges", "generation", "localisation_generated", "watermark")
GATES = ("weights", "localisation", "unmarked", *(f"{k}_{m}" for m in MODALITIES for k in KINDS),
         "manifest", "processes")  # fmt: skip
REAL = "../shared/data"
SIGNATURE = "build/baselines/stable_signature_{modality}/decoder"  # as Table 1's recipe leaves it

# In this order; a new recorded file gets a line here.
STEPS = {step.name: step for step in (
    *map(_gate, GATES),
    *(_of_modality("records.table_samples", m, parts=("pipeline",)) for m in MODALITIES),
    *(_of_modality("adversary.attacker", m, parts=attacker.weights_of(m)) for m in MODALITIES),
    *(_of_modality("tables.table1", m, parts=attacker.weights_of(m), needs=tuple(
        f"build/baselines/{folder}" for folder in table1_weights.made(m)
    )) for m in MODALITIES),
    *(_of_modality("tables.table2", m, parts=table2.weights_of(m), needs=(
        *(f"build/variants_{m}/{name}/seed-{s}/decoder" for name in VARIANTS for s in range(SEEDS)),
        "medsign_lite/weights/classifier_mixer",
    ), more=f" --variants build/variants_{m}") for m in MODALITIES),
    Step(command="medsign_lite.tables.paper_drawings --data MANIFEST --out RESULTS --images "
         f"{IMAGES} --decoder 'Stable Signature={SIGNATURE}'", output="paper_figures.json",
         settings={"images": IMAGES},
         needs=tuple(SIGNATURE.format(modality=name) for name in MODALITIES)),
    Step(command="benchmarks.attention --output RESULTS/attention_benchmark.json",
         output="attention_benchmark.json", parts=()),
    Step(command=f"benchmarks.phantom_exposure --real {REAL}/cxr "
         "--output RESULTS/phantom_exposure.json", output="phantom_exposure.json", parts=(),
         needs=(f"{REAL}/cxr",)),
    Step(command="benchmarks.decoder_recipe --cache build/weights/cache_chest "
         "--output RESULTS/decoder_recipe.json", output="decoder_recipe.json",
         parts=("pipeline", "extractor"), needs=("build/weights/cache_chest",)),
    *(Step(command=f"benchmarks.mark_trade --modality {m} --output RESULTS/mark_trade_{m}.json",
           output=f"mark_trade_{m}.json", settings={"images": IMAGES},
           parts=("pipeline", "extractor", f"decoder_{m}", "classifier", "classifier_mixer"))
      for m in MODALITIES),
    Step(command=f"benchmarks.real_radiographs --data {REAL} "
         "--output RESULTS/real_radiographs.json", output="real_radiographs.json", parts=(),
         needs=(f"{REAL}/cxr", f"{REAL}/taesd")),
    *(Step(command=f"benchmarks.real_decoder --data {REAL} --extractor {kind} --output "
           f"RESULTS/real_decoder_{kind}.json", output=f"real_decoder_{kind}.json", parts=parts,
           needs=(f"{REAL}/cxr", f"{REAL}/cxr_masks", f"{REAL}/taesd", f"{REAL}/stable_signature"))
      for kind, parts in (("published", ()), ("own", ("extractor",)))),
)}  # fmt: skip


def state(step: Step, results: Path = RESULTS, weights: Path = WEIGHTS) -> str:
    """ "current", "missing", "stale: ..." with what it was recorded of instead, or "incomplete:
    ..." with the rows that a table still lacks."""
    path = results / step.output
    if not path.is_file():
        return "missing"
    document = read_result(path)
    config = document["config"]
    for key, wanted in step.settings.items():
        if config.get(key) != wanted:
            return f"stale: {key} {config.get(key)}, not {wanted}"
    if step.parts == ():
        return "current"
    parts = step.parts and [name for name in step.parts if (weights / name).is_dir()]
    found, now = config.get("weights"), weights_fingerprint(weights, parts)
    if found is None:
        return "stale: it does not say of which weights it is"
    if found != now:
        return f"stale: of the weights {found}, which are now {now}"
    if lacking := document["values"].get("missing"):
        return f"incomplete: without {', '.join(lacking)}"
    return "current"


def missing_inputs(step: Step) -> list[str]:
    """What a step needs and the repository does not have."""
    return [name for name in step.needs if not (ROOT / name).exists()]


def words(step: Step, *, data: Path, results: Path, weights: Path) -> list[str]:
    """The step's command with its placeholders filled in."""
    filled = {"MANIFEST": data, "RESULTS": results}
    if "WORK" in step.command:
        pipeline = weights_fingerprint(weights, ["pipeline"])
        filled["WORK"] = ROOT / "build" / "recorded" / pipeline
    # In one pass: a path that is filled in may itself hold the name of another placeholder.
    found = [
        re.sub("|".join(filled), lambda match: str(filled[match[0]]), word)
        for word in shlex.split(step.command)
    ]
    return [sys.executable, "-m", *found]


def recompute(
    steps: Mapping[str, Step], *, data: Path, results: Path = RESULTS, weights: Path = WEIGHTS
) -> bool:
    """Run what is not current, in order; True if all is current then, but for what has to wait.

    A command may end with an error because a figure falls short of a gate: what counts is whether
    its file is current afterwards.
    """
    fine = True
    for name, step in steps.items():
        if state(step, results, weights) == "current":
            print(f"{name}: current", flush=True)
        elif missing := missing_inputs(step):
            print(f"{name}: waits for {', '.join(missing)}", flush=True)
        else:
            print(f"{name}: python -m {step.command}", flush=True)
            command = words(step, data=data, results=results, weights=weights)
            status = subprocess.run(command, cwd=ROOT).returncode
            after = state(step, results, weights)
            if after != "current":
                print(f"{name}: its command ended with {status}, and it is {after}", flush=True)
                fine = False
    return fine


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medsign_lite.recorded", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--list", action="store_true", help="what is current, and the commands")
    parser.add_argument("--data", type=Path, help="manifest of held-out phantoms")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="as --list names them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if unknown := set(options.only or ()) - set(STEPS):
        parser.error(f"unknown steps {sorted(unknown)}: expected some of {', '.join(STEPS)}")
    chosen = {name: step for name, step in STEPS.items() if name in (options.only or STEPS)}
    if options.list:
        for name, step in chosen.items():
            waits = (
                f" (waits for {', '.join(missing)})" if (missing := missing_inputs(step)) else ""
            )
            print(f"{name:32} {state(step, options.results)}{waits}\n    python -m {step.command}")
        return 0
    if options.data is None or not options.data.is_file():
        parser.error(f"--data: expected a manifest of held-out phantoms, got {options.data}")
    data, results = options.data.resolve(), options.results.resolve()
    return 0 if recompute(chosen, data=data, results=results) else 1


if __name__ == "__main__":
    sys.exit(main())
