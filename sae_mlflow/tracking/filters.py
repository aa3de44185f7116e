"""Values in MLflow's filter language, which quotes in two ways and escapes in none."""

from sae_mlflow.errors import UserError


def filter_value(text: str) -> str:
    """A value between quotes that it can't end.

    Raises:
        UserError: it holds quotes of both kinds, so that no filter can ask for it.
    """
    for quote in ("'", '"'):
        if quote not in text and "\0" not in text:
            return f"{quote}{text}{quote}"
    raise UserError(f"{text!r} holds quotes that MLflow's filters can't express.")
