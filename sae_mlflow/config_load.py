"""A YAML file (with `extends`) and dotted overrides become the settings, or an error that says why.

Everything that a user can get wrong here is said before anything heavy is imported or started.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from sae_mlflow.config import Settings
from sae_mlflow.config_checks import check_layers, check_read, check_together, in_order
from sae_mlflow.config_errors import explain
from sae_mlflow.config_files import find_config, read_config
from sae_mlflow.config_section import Section
from sae_mlflow.errors import UserError


def load_settings(config: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read a config file, apply what it extends and then the overrides, and validate the result.

    Args:
        config: a name in `configs/` (`sae_balanced.yaml`) or a path.
        overrides: dotted keys to values, as `parse_set` returns them.

    Returns:
        Settings as they were written, but for a crosscoder's layers, which are put in order.

    Raises:
        UserError: the file is missing, empty or not YAML; a key is unknown; a value is wrong.
    """
    path = find_config(config)
    data = read_config(path)
    for key, value in (overrides or {}).items():
        _assign(data, key, value)
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        meanings = {key: meaning for key, _, meaning in setting_docs()}
        raise UserError(explain(error.errors()[0], path, overrides or {}, meanings)) from None
    check_together(settings, path)
    check_read(settings.sae, overrides or {})
    check_layers(settings.model.layers, path)
    return in_order(settings) if settings.sae.architecture == "crosscoder" else settings


def setting_docs() -> Iterator[tuple[str, str, str]]:
    """Every setting as (dotted key, default, what it means)."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, Section):
            for sub, subfield in type(field.default).model_fields.items():
                yield f"{name}.{sub}", _shown(subfield.default), _one_line(subfield.description)
        else:
            yield field.alias or name, _shown(field.default), _one_line(field.description)


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = data.get(section)
        # a copy, so that what an `extends` merge shares is left alone
        data[section] = dict(inner) if isinstance(inner, dict) else {}
        data = data[section]
    data[last] = value


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "unset" if default is None else str(default)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
