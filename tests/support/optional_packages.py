"""The packages of the extras, and code that runs as if they were not installed."""

# Without PyTorch, of the extra "convert": SciPy fails if PyTorch is hidden like this.
PACKAGES = (
    *("array_record", "embreex", "grain", "jinja2", "lpips_j", "matplotlib"),
    *("ml_collections", "tensorboard", "tensorflow", "tensorflow_datasets", "trimesh"),
    "viser",
)
# Put before a script: importing one of the packages then raises ModuleNotFoundError.
HIDE = f"import sys\nsys.modules.update(dict.fromkeys({PACKAGES}))\n"
