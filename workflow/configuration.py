"""What a schema cannot say about the workflow's configuration, checked before any job starts."""

from collections.abc import Mapping
from pathlib import Path

from medsign_lite.profiles import PATHS
from workflow.steps import ROOT, notebooks_in, parameters_of
from workflow.sweep import grid_points

# What the workflow itself hands to every notebook.
_OWN_PARAMETERS = {"profile", "seed", "run_folder", "pipeline", "data"}


def check_configuration(config: Mapping) -> None:
    """Refuse a configuration whose jobs would fail later on.

    Args:
        config: valid by config.schema.yaml, its defaults filled in.

    Raises:
        ValueError: naming the key, what was expected and what came: two tutorials of one name, an
            unknown notebook or parameter, a profile that needs the user's own model and data, a
            path that does not exist, a sweep that names a point twice, more workers than
            batches, or nothing left to train on.
    """
    names = [tutorial["name"] for tutorial in config["tutorials"]]
    if len(set(names)) != len(names):
        raise ValueError(f"tutorials: each needs a name of its own, got {', '.join(names)}")
    for tutorial in config["tutorials"]:
        _check_tutorial(tutorial, notebooks_in(resolved(config["notebook_folder"])))
    if sweep := config.get("sweep"):
        _check_paths("sweep", sweep, ("pipeline", "extractor", "data", "perceptual_weights"))
        grid_points(sweep["grid"])
        if start := sweep["finetuning"]["start"]:
            for modality in sweep["grid"]["modality"]:
                folder = {"start": f"{start}/decoder_{modality}"}
                _check_paths("sweep/finetuning", folder, ("start",))
        cache, held_out = sweep["cache"], sweep["finetuning"]["held_out"]
        batches = -(-cache["entries"] // cache["batch"])
        if cache["workers"] > batches:
            raise ValueError(
                f"sweep: cache has {cache['workers']} workers for {batches} batches, expected at "
                "most as many"
            )
        if held_out >= cache["entries"]:
            raise ValueError(
                f"sweep: finetuning holds out {held_out} entries, expected fewer than the "
                f"{cache['entries']} of the cache"
            )


def resolved(path: str) -> Path:
    """A path of the configuration; a relative one lies in the repository."""
    return (ROOT / Path(str(path)).expanduser()).resolve()


def chosen_notebooks(tutorial: Mapping, notebooks: Mapping[str, Path]) -> list[str]:
    """The names of the notebooks that a tutorial asks for, in order.

    Raises:
        ValueError: if one does not exist; lists those that do.
    """
    wanted = tuple(tutorial["notebooks"])
    for prefix in wanted:
        if not any(name.startswith(prefix) for name in notebooks):
            raise ValueError(
                f"tutorial {tutorial['name']}: no notebook {prefix!r}, there are "
                f"{', '.join(notebooks)}"
            )
    return [name for name in notebooks if not wanted or name.startswith(wanted)]


def notebook_parameters(tutorial: Mapping, notebook: str) -> dict[str, object]:
    """What the workflow hands to a notebook of a tutorial; its paths as `resolved` makes them.

    A judge that is no path is the name of a published classifier, and stays as it is.
    """
    given = {key: tutorial[key] for key in ("pipeline", "data") if tutorial[key]}
    given |= tutorial["parameters"].get(notebook, {})
    for key in PATHS:
        if given.get(key) and (key != "judge" or resolved(given[key]).exists()):
            given[key] = str(resolved(given[key]))
    return {"profile": tutorial["profile"], "seed": tutorial["seed"], **given}


def given_files(parameters: Mapping) -> list[Path]:
    """The files and folders among what `notebook_parameters` returns."""
    paths = [Path(parameters[key]) for key in PATHS if parameters.get(key)]
    return [path for path in paths if path.exists()]


def _check_tutorial(tutorial: Mapping, notebooks: Mapping[str, Path]) -> None:
    place = f"tutorial {tutorial['name']}"
    chosen_notebooks(tutorial, notebooks)
    _check_paths(place, tutorial, ("pipeline", "data"))
    if tutorial["profile"] == "paper" and not (tutorial["pipeline"] and tutorial["data"]):
        raise ValueError(f"{place}: profile paper needs your own checkpoint and data: give both "
                         "pipeline and data")  # fmt: skip
    for name, parameters in tutorial["parameters"].items():
        if name not in notebooks:
            raise ValueError(f"{place}: parameters of {name!r}, there are {', '.join(notebooks)}")
        accepted = parameters_of(notebooks[name]) - _OWN_PARAMETERS
        if unknown := sorted(set(parameters) - accepted):
            raise ValueError(
                f"{place}: unknown parameter {', '.join(unknown)}: {name} accepts "
                f"{', '.join(sorted(accepted)) or 'none'}"
            )
        _check_paths(f"{place}, {name}", {"autoencoder": ""} | parameters, ("autoencoder",))


def _check_paths(place: str, section: Mapping, keys: tuple[str, ...]) -> None:
    for key in keys:
        if section[key] and not resolved(section[key]).exists():
            raise ValueError(f"{place}: {key} does not exist: {section[key]}")
