"""The environment as it is now, though another thread changes it meanwhile."""

import os


def environment() -> dict[str, str]:
    """Every variable; `dict(os.environ)` fails where one goes away while it reads them."""
    found = ((name, os.environ.get(name)) for name in list(os.environ))
    return {name: value for name, value in found if value is not None}
