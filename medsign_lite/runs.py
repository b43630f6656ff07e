"""A run: its parameters, validated once, and the folder through which notebooks hand on their work.

Example, the validating cell of a notebook and two later lines:
    >>> run = open_run("03_cas_and_aas", profile=profile, seed=seed, run_folder=run_folder,
    ...                pipeline=pipeline, data=data, prompts=prompts, own={"word": (str, word)})
    >>> maps = load_file(run.require("maps.safetensors", made_by="02_attention_extraction"))
    >>> run.record("03_cas_and_aas", {"cnr": {"value": 1.31, "low": 1.2, "high": 1.4}})
"""

import ast
import dataclasses
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from medsign_lite.files import whole_file
from medsign_lite.profiles import Profile, coerce
from medsign_lite.profiles import profile as preset  # `open_run` has a parameter of that name
from medsign_lite.results import ROOT, check_space, record_result, write_json
from medsign_lite.training.processor import tune_processor

COMMON_PARAMETERS = ("profile", "seed", "run_folder", "pipeline", "data")
BUNDLED_PIPELINE = Path(__file__).resolve().parent / "weights" / "pipeline"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a notebook needs to know of its run. Made by `open_run`.

    Attributes:
        notebook: name of the notebook, without its suffix.
        profile: the sizes to use, overrides included.
        seed: the run's seed.
        folder: the run folder, which exists.
        pipeline: a diffusers pipeline folder; the bundled one unless the user gave another.
        data: the user's manifest, or None for the phantoms.
        device: "cuda" where there is one, else "cpu".
        parameters: the notebook's own parameters by name, converted to their types.
    """

    notebook: str
    profile: Profile
    seed: int
    folder: Path
    pipeline: Path
    data: Path | None
    device: torch.device
    parameters: Mapping = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """A path inside the run folder whose parent exists, for a file that this notebook makes."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"{name!r} lies outside the run folder {self.folder}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def require(self, filename: str, made_by: str) -> Path:
        """The path of a file or folder that an earlier notebook made.

        Args:
            filename: name inside the run folder.
            made_by: the notebook that makes it, such as "02_attention_extraction".

        Raises:
            FileNotFoundError: if it is missing; says which notebook makes it and how to run it.
        """
        path = self.folder / filename
        if not path.exists():
            raise FileNotFoundError(
                f"{filename} is missing from the run folder {self.folder}. It is made by the "
                f"notebook {made_by}: run that first with the same profile and run_folder, or\n"
                f"    python -m medsign_lite.tutorial --profile {self.profile.name} "
                f'--run-folder "{self.folder}" --notebooks {made_by[:2]}'
            )
        return path

    @property
    def pipeline_folder(self) -> Path:
        """The pipeline to sample from: the user's, else what a run from nothing has trained
        (notebook 01 makes it), else the bundled one."""
        if self.profile.from_nothing and self.pipeline == BUNDLED_PIPELINE:
            return self.require("pipeline/model_index.json", "01_text_to_image_ldm").parent
        return self.pipeline

    def generator(self, offset: int = 0) -> torch.Generator:
        """A CPU generator for one purpose; other offsets and other seeds give unrelated streams."""
        words = np.random.SeedSequence([self.seed, offset]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))

    def check_space(self, megabytes: float) -> None:
        """Raise now if the run folder's disk has less free space than will be written."""
        check_space(self.folder, megabytes)

    @property
    def config(self) -> dict:
        """Everything that makes this run what it is, for a recorded result."""
        return {
            "notebook": self.notebook,
            "seed": self.seed,
            "profile": dataclasses.asdict(self.profile),
            "parameters": dict(self.parameters),
            "pipeline": "bundled" if self.pipeline == BUNDLED_PIPELINE else str(self.pipeline),
            "data": "phantoms" if self.data is None else str(self.data),
            "device": str(self.device),
        }

    def record(self, name: str, values: Mapping) -> Path:
        """Write results to results/<name>.json with configuration, versions and hardware.

        A figure with an uncertainty is {"value": ..., "low": ..., "high": ...}; a list of dicts
        with the same keys is shown as a table on the index page.
        """
        return record_result(self.path(f"results/{name}.json"), values, self.config)

    def save_figure(self, figure, name: str, caption: str, alt: str) -> Path:
        """Save a matplotlib figure, with its caption and alternative text, for the index page.

        Args:
            figure: a matplotlib Figure.
            name: a file name without suffix; "paper_fig2" and "paper_fig3" have their own place.
            caption: what the reader should see in it, one or two sentences.
            alt: what it shows, for someone who cannot see it.

        Returns:
            The path of the PNG, figures/<name>.png.
        """
        for label, text in (("a caption", caption), ("alternative text (alt)", alt)):
            if not text.strip():
                raise ValueError(f"figure {name} needs {label}")
        path = self.path(f"figures/{name}.png")
        with whole_file(path) as file:
            figure.savefig(file, format="png", dpi=110, bbox_inches="tight", facecolor="white")
        about = {"notebook": self.notebook, "caption": caption.strip(), "alt": alt.strip()}
        write_json(path.with_suffix(".json"), about)
        return path


def default_folder(name: str) -> Path:
    """runs/<profile> in the repository, wherever the caller's working directory is."""
    return ROOT / "runs" / name


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, for libraries that draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def open_run(
    notebook: str,
    *,
    profile: str,
    seed: int,
    run_folder: str | Path = "",
    pipeline: str | Path = "",
    data: str | Path = "",
    own: Mapping[str, tuple[type, object]] | None = None,
    **overrides: object,
) -> Run:
    """Validate a notebook's parameters, seed, make the run folder and check its free space.

    Args:
        notebook: the notebook's name, such as "03_cas_and_aas".
        profile: "smoke", "class", "full" or "paper".
        seed: a whole number of at least 0.
        run_folder: "" for runs/<profile> in the repository.
        pipeline: a diffusers pipeline folder; "" for the bundled one.
        data: a manifest (CSV); "" for the phantoms.
        own: the notebook's own parameters, as name: (type, value).
        overrides: fields of `Profile`; None and "" mean the profile's own value.

    Raises:
        ValueError: for an unknown profile or parameter (also one that papermill injected under a
            name that this call does not pass on), a value of the wrong type, or a profile that
            needs the user's own pipeline and data.
        FileNotFoundError: if pipeline or data is given and does not exist.
        OSError: if the disk is nearly full.
    """
    own = dict(own or {})
    accepted = [*COMMON_PARAMETERS, *own, *overrides]
    unknown = sorted(injected_names() - set(accepted))
    if unknown:
        raise ValueError(
            f"unknown parameter {', '.join(unknown)}: {notebook} accepts {', '.join(accepted)}"
        )
    sizes = preset(profile, **overrides)
    if sizes.own_pipeline and not (str(pipeline) and str(data)):
        raise ValueError(
            f"profile {sizes.name!r} needs your own checkpoint and data: give pipeline (a "
            "diffusers folder, such as RoentGen's) and data (a manifest, as data_prep writes it)"
        )
    seed = coerce("seed", seed, int)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    folder = Path(run_folder).expanduser() if str(run_folder) else default_folder(sizes.name)
    run = Run(
        notebook=notebook,
        profile=sizes,
        seed=seed,
        folder=folder.resolve(),
        pipeline=_existing("pipeline", pipeline) or BUNDLED_PIPELINE,
        data=_existing("data", data),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        parameters={name: coerce(name, value, kind) for name, (kind, value) in own.items()},
    )
    run.check_space(sizes.disk_megabytes)
    run.folder.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    tune_processor()
    return run


def _existing(name: str, path: str | Path) -> Path | None:
    if not str(path):
        return None
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist: {path}")
    return path


def injected_names() -> set[str]:
    """Names assigned by the cell that papermill injected in this kernel; empty elsewhere.

    papermill runs the defaults when a parameter's name is misspelt; its cell starts with the
    comment "# Parameters", by which it is found here.
    """
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    names: set[str] = set()
    for source in shell.user_ns.get("In", []) if shell else []:
        if source.startswith("# Parameters\n"):
            for node in ast.parse(source).body:
                if isinstance(node, ast.Assign):
                    names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names
