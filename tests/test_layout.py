"""The repository keeps its shape: layers, imports, environment files, and what may not be in it."""

import ast
import functools
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

# A module imports lower layers, or its own without a cycle. A new module gets a line here.
LAYERS = {
    0: {
        "medsign_lite": "files images messages checkpoints profiles results runs published",
        "medsign_lite.training": """
            precision budgets averaging evaluation_mode optimisers processor processes
            training_state random_streams""",
        "medsign_lite.records": "kept_parts",
    },
    1: {
        "medsign_lite": """
            data image_stack attacks distortions metrics rows losses extractor spectral
            whitening latent_diffusion latent_cache perceptual attention attention_layers
            error_correction generators memory_estimate shards""",
        "medsign_lite.generator": "bundled_networks",
        "medsign_lite.judges": "patch_mixer",
        "medsign_lite.baselines": """
            published_extractor dct_dwt noticeable backbone vicreg ssl_watermark
            localised_watermark marked_regions""",
        "medsign_lite.adversary": "attack_chains",
        "medsign_lite.deployment": "dicom image_files provenance",
    },
    2: {
        "medsign_lite": """
            localisation localisation_scores selection detection pretraining curriculum
            finetuning finetuning_step decoder_recipe evaluation sample_cache encoded_images
            map_variants neutral_messages mark_strength""",
        "medsign_lite.generator": """
            autoencoder_training denoiser_training grounding report_supervision report_tokenizer
            diffusion_finetuning diffusion_step""",
        "medsign_lite.judges": "judge_training judge_data judge_networks judge_scores xrayvision",
        "medsign_lite.baselines": "backbone_training localised_training watermark_methods",
        "medsign_lite.adversary": "attack_scores attack_curves regeneration purification forgery",
        "medsign_lite.tables": """
            table1_weights matched_quality diagnostic_scores table2_rows claims""",
        "medsign_lite.records": "held_out table_samples decoder_scores agreement",
        "medsign_lite.deployment": "keys key_detection detection_table",
    },
    3: {
        "medsign_lite": """
            plotting figures widgets index_page notebook_execution tutorial bundle recorded""",
        "medsign_lite.adversary": "attack_measurements attacker attack_figures",
        "medsign_lite.tables": """
            paper_figures paper_drawings table1 table1_measurements table1_record table1_figures
            ablations table2 table2_measurements table2_record""",
        "medsign_lite.records": """
            gates gate_measurements scale_measurements gate_tables result_tables gate_verdicts
            table1_gates table2_gates""",
        "medsign_lite.deployment": "command_line detect_command generate_command keys_command",
    },
}
LAYER = {
    f"{package}.{name}": layer
    for layer, packages in LAYERS.items()
    for package, names in packages.items()
    for name in names.split()
}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {
    dotted(path): path
    for path in sorted((ROOT / "medsign_lite").rglob("*.py"))
    if path.stem != "__init__"
}
PACKAGES = {name.rpartition(".")[0] for name in FILES}
PREPARATION = sorted(dotted(path) for path in (ROOT / "data_prep").glob("[!_]*.py"))


def imports_of(path: Path) -> set[str]:
    """Modules of this repository that a file imports anywhere, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            package = node.module in PACKAGES | {"data_prep"}
            found |= children & {*FILES, *PREPARATION} if package else {node.module}
    return {name for name in found if name.split(".")[0] in ("medsign_lite", "data_prep", "tests")}


@functools.cache
def graph() -> dict[str, set[str]]:
    return {name: imports_of(path) for name, path in FILES.items()}


def test_imports_of_finds_both_forms_and_nested_ones(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "import numpy\nimport data_prep.phantoms\nfrom medsign_lite import images\n"
        "def late():\n    from medsign_lite.runs import Run\n"
        "    from medsign_lite.tables import table1\n"
    )
    expected = {"data_prep.phantoms", "medsign_lite.images", "medsign_lite.runs",
                "medsign_lite.tables.table1"}  # fmt: skip
    assert imports_of(path) == expected


@pytest.mark.parametrize("name", FILES)
def test_module_imports_lower_layers_only(name):
    assert name in LAYER, f"{name} has no layer: give it one in this file's table"
    for imported in graph()[name]:
        assert imported in LAYER, f"{name} imports {imported}: the library imports only itself"
        assert LAYER[imported] <= LAYER[name], (
            f"{name} (layer {LAYER[name]}) imports {imported} (layer {LAYER[imported]})"
        )


def test_imports_make_no_cycle():
    remaining = graph()
    while remaining:
        free = {name for name, needs in remaining.items() if not needs & set(remaining)}
        assert free, f"an import cycle among {sorted(remaining)}"
        remaining = {name: needs for name, needs in remaining.items() if name not in free}


DRAWING = {f"medsign_lite.{name}" for name in (
    "plotting", "figures", "widgets", "adversary.attack_figures", "tables.paper_figures",
    "tables.paper_drawings", "tables.table1_figures",
)}  # fmt: skip


def test_nothing_below_imports_plotting_or_widgets():
    for name, needs in graph().items():
        if name not in DRAWING:
            assert not needs & DRAWING, f"{name} imports {needs}"


@pytest.mark.parametrize("name", sorted({*FILES, *PACKAGES, *PREPARATION}))
def test_module_imports(name):
    assert importlib.import_module(name).__doc__, f"{name} has no docstring"


def test_packages_are_installed():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(tools["packages"]) == PACKAGES | {"data_prep"}


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, medsign_lite; "
        "print(*sorted({'torch', 'diffusers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == ""


def test_every_public_name_is_found_lazily():
    import medsign_lite

    assert sorted(medsign_lite.__all__) == medsign_lite.__all__
    for name in medsign_lite.__all__:
        if importlib.util.find_spec(f"medsign_lite.{medsign_lite._MODULES[name]}"):
            assert getattr(medsign_lite, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'watermark'"):
        _ = medsign_lite.watermark


def requirements(lines: list[str]) -> dict[str, str]:
    """Name (lower case) to version range."""
    pairs = [re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line.strip()).groups() for line in lines]
    return {name.lower().replace("_", "-"): rest for name, rest in pairs}


def test_environment_matches_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirements(project["dependencies"] + project["optional-dependencies"]["dev"])
    wanted["python"] = project["requires-python"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    found = requirements(conda)
    found["torch"] = found.pop("pytorch")  # conda-forge's name of the same package
    assert found == wanted


def test_constraints_pin_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirements(project["dependencies"] + project["optional-dependencies"]["dev"])
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = requirements([line for line in lines if line and not line.startswith("#")])
    assert not set(wanted) - set(pins)
    for name, pin in pins.items():
        assert re.fullmatch(r"==[0-9][0-9a-zA-Z.]*", pin), f"{name}{pin} is not one version"
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {repository["repo"].split("/")[-1]: repository["rev"] for repository in hooks}
    assert revisions["ruff-pre-commit"] == "v" + pins["ruff"].removeprefix("==")


# What no file may contain. Written so that the patterns do not match themselves.
FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.}~])/(?:home|Users|root|work|mnt|farm)/\w",
    "a package index": r"-index-[u]rl|--find-[l]inks|pythonhosted\.[o]rg|download\.pytorch\.[o]rg",
    "a bare except": r"^[ \t]*except[ \t]*:[ \t]*$",
    "a test that cannot fail": r"^[ \t]*assert (?:True|1 == 1)\b",
}
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".ipynb", ".json", ".cff", ".html", ".csv",
        ""}  # fmt: skip


def repository_files() -> list[Path]:
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("the file list comes from git, and this is no git checkout")
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def findings(text: str) -> list[str]:
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text, re.M)]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('open("/ho' + 'me/ann/x.png")', "a path of somebody's machine"),
        ("pip install --extra-index-" + "url https://x", "a package index"),
        ("try:\n    f()\nexcept" + ":\n    pass", "a bare except"),
        ("    assert " + "True", "a test that cannot fail"),
    ],
    ids=["path", "index", "except", "assert"],
)
def test_findings_sees_each_forbidden_thing(text, finding):
    assert findings(text) == [finding]


def test_files_contain_nothing_forbidden():
    bad = []
    for path in repository_files():
        if path.suffix in TEXT and path.stat().st_size < 2**21:
            bad += [f"{path.relative_to(ROOT)}: {what}" for what in findings(path.read_text())]
    assert not bad


def test_file_names_and_sizes():
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        assert path.stem not in ("utils", "helpers", "common"), f"{name} is named for no idea"
        assert path.stat().st_size <= 16 * 2**20, f"{name} is larger than 16 MiB"


def test_shipped_weights_fit_the_repository():
    weights = ROOT / "medsign_lite" / "weights"
    if not weights.is_dir():
        pytest.skip("no weights are shipped yet")
    size = sum(path.stat().st_size for path in weights.rglob("*") if path.is_file())
    assert size <= 40 * 2**20
