"""medsign_lite: watermarks for generated medical images that keep away from the pathology.

The names in `__all__` are imported when they are first used, so `import medsign_lite` alone loads
neither torch nor diffusers. Every other public name is imported from its own module.
"""

from importlib import import_module

__version__ = "0.1.0"

__all__ = [
    "Extractor",
    "bit_accuracy",
    "detect",
    "load_extractor",
    "load_image",
    "load_pipeline",
    "open_run",
    "pathology_map",
    "psnr",
    "random_message",
    "record_attention",
    "save_image",
    "ssim",
]

_MODULES = {
    "Extractor": "extractor",
    "bit_accuracy": "metrics",
    "detect": "detection",
    "load_extractor": "extractor",
    "load_image": "images",
    "load_pipeline": "latent_diffusion",
    "open_run": "runs",
    "pathology_map": "localisation",
    "psnr": "metrics",
    "random_message": "messages",
    "record_attention": "attention",
    "save_image": "images",
    "ssim": "metrics",
}


def __getattr__(name: str):
    """Import a name of `__all__` from its module at first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
