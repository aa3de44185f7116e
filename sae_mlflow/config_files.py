"""Config files: found by name, read as YAML, and laid over what they extend."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sae_mlflow.errors import UserError, did_you_mean, known
from sae_mlflow.folders import is_file, is_folder, user_path

_MOST_VALUES = 100_000


def find_config(config: str) -> Path:
    """The file that a config's name means: a path, else in `./configs`, else the package's own."""
    asked = user_path(config)
    for candidate in _candidates(asked):
        if is_file(candidate):
            return candidate
    if is_folder(asked):
        raise UserError(f"Config {config!r} is a folder. Name a file in it.")
    names = sorted({p.name for d in _config_folders() if d.is_dir() for p in d.glob("*.yaml")})
    # by what they don't all have: `nope.yaml` would be near to every short name
    hint = did_you_mean(asked.stem, [Path(name).stem for name in names]).replace("?", ".yaml?")
    raise UserError(
        f"Config {config!r} not found. {hint}There are: {known(names)}, or give a path."
    )


def find_style(style: str, shipped: bool = False) -> Path:
    """The file that a plot style's name (`paper`) or path means.

    Args:
        shipped: only the package's own.
    """
    path = user_path(style)
    if is_file(path) and not shipped:
        return path
    folder = shipped_folder() / "plots"
    named = folder / f"{path.name.removesuffix('.yaml')}.yaml"
    if is_file(named) and path.parent in (Path(), Path("plots"), Path("configs/plots")):
        return named
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    raise UserError(
        f"There is no plot style {style!r}. {did_you_mean(path.stem, names)}"
        f"There are: {known(names)}, or give a file's path."
    )


def _candidates(asked: Path) -> Iterator[Path]:
    spellings = [asked] if asked.suffix in {".yaml", ".yml"} else [asked, Path(f"{asked}.yaml")]
    for path in spellings:
        yield path
        if not path.is_absolute():
            # `configs/sae/x.yaml` also finds the package's `x.yaml`, wherever one works from
            tails = [
                Path(*path.parts[i:]) for i in range(len(path.parts)) if ".." not in path.parts
            ]
            yield from (folder / tail for folder in _config_folders() for tail in tails)


def _config_folders() -> list[Path]:
    return [Path("configs"), shipped_folder()]


def shipped_folder() -> Path:
    """The package's own configs."""
    package = Path(__file__).parent
    shipped = package / "configs"  # inside the wheel; in a source checkout it stands one level up
    return shipped if shipped.is_dir() else package.parent / "configs"


def read_config(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file says, over what it `extends`.

    Args:
        seen: files that extend this one.

    Raises:
        UserError: a file is missing, empty or not YAML, or extends itself.
    """
    if path.resolve() in seen:
        raise UserError(f"{path}: `extends` comes back to this file. Remove one of the links.")
    data = read_yaml(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends = {parent!r}, but it takes one config's name.")
    beside = path.parent / parent
    try:
        base_path = beside if is_file(beside) else find_config(parent)
    except UserError as error:
        raise UserError(f"{path}, extends: {error}") from None
    base = read_config(base_path, (*seen, path.resolve()))
    return merged(base, data)


def read_yaml(path: Path) -> dict[str, Any]:
    """What a file says itself; plain values alone: a tag that would make an object is refused.

    Raises:
        UserError: it is missing, empty or not YAML.
    """
    try:
        data = plain_yaml(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path} is not a config: it nests too deeply.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or "it can't be parsed"
        raise UserError(f"{path}{where} is not valid YAML: {problem}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file. A config is YAML in UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    if data is None:
        raise UserError(f"{path} is empty. Put settings in it, or start from sae_balanced.yaml.")
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds a {type(data).__name__}, but a config is `key: value` lines."
        )
    return data


def plain_yaml(text: str) -> Any:
    """Text, numbers, truth values, lists, and mappings by text: what a setting can be.

    Raises:
        yaml.YAMLError: it isn't YAML, or holds something else: a date, a list in itself.
    """
    try:
        data = yaml.safe_load(text)
        _count(data, {})
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    # what PyYAML lets through of a number, a date or a tag that isn't what it looks like
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise yaml.YAMLError(f"a value isn't what it looks like: {_first_line(error)}") from None
    return data


def _count(data: Any, known_counts: dict[int, int | None]) -> int:
    """Values in all, each as often as it is referred to; few lines can refer to billions."""
    if data is None or isinstance(data, str | int | float):
        return 1
    if not isinstance(data, list | dict):
        raise yaml.YAMLError(f"it holds a {type(data).__name__}; write it in quotes")
    if id(data) not in known_counts:
        known_counts[id(data)] = None
        if isinstance(data, dict) and any(not isinstance(key, str) for key in data):
            key = next(key for key in data if not isinstance(key, str))
            raise yaml.YAMLError(f"the key {key!r} isn't text; write it in quotes")
        inner = data.values() if isinstance(data, dict) else data
        known_counts[id(data)] = 1 + sum(_count(value, known_counts) for value in inner)
    count = known_counts[id(data)]
    if count is None:
        raise yaml.YAMLError("a list or mapping holds itself")
    if count > _MOST_VALUES:
        raise yaml.YAMLError(f"it holds over {_MOST_VALUES:,} values")
    return count


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def merged(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """`data` laid over `base`, section by section."""
    result = dict(base)
    for key, value in data.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return result
