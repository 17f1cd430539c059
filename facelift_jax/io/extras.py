"""Optional dependencies: `pip install "facelift-jax[train]"` and its like."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the import of a package that only the extra `name` installs.

    Raises:
      ImportError: the package is missing; one line that says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the package {error.name} is missing: install the extra that brings it, "
            f'pip install "facelift-jax[{name}]"'
        ) from error
