"""Optional dependencies, which `pip install "facelift-jax[EXTRA]"` installs."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """A block that imports packages of the extra `name`.

    Raises:
      ImportError: a package is missing; one line that says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the package {error.name} is missing: install it with "
            f'pip install "facelift-jax[{name}]"'
        ) from error
