"""Configuration as data: YAML to frozen pydantic records, with errors that say where and what is meant."""

import difflib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from evcs_gym.envs.errors import ConfigError

Frac = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveKw = Annotated[float, Field(gt=0.0, le=1e5)]
NonNegativeKw = Annotated[float, Field(ge=0.0, le=1e5)]
PricePerKwh = Annotated[float, Field(ge=0.0, le=10.0)]

BusName = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
"""Name of a feeder bus; YAML reads 7 as a number."""


class Spec(BaseModel):
    """Base of all configuration records: frozen, without unknown keys, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SpecT = TypeVar("SpecT", bound=Spec)


def nearest(key: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown key: the nearest known one, or all.

    A key that the given one begins comes first: the unit is what people leave out.
    """
    begun = sorted((name for name in known if key and name.startswith(key)), key=len)
    close = begun or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(known))}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names that are allowed beside the offending key: follows the models along the location of a pydantic error."""
    current: Any = model
    for step in location[:-1]:
        if isinstance(step, int):
            continue
        field = next((f for n, f in current.model_fields.items() if step in (n, f.alias)), None)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        current = nested[0]
    return [field.alias or name for name, field in current.model_fields.items()]


def describe_validation_error(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """All complaints of a validation, one a line: where, what must hold, what was got, the nearest known key."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        prefix = f"{source}: {where}" if where else source
        if item["type"] == "extra_forbidden":
            lines.append(f"{prefix} is no known key{nearest(str(item['loc'][-1]), _fields_at(model, item['loc']))}")
        elif item["type"] == "missing":
            lines.append(f"{prefix} is missing")
        elif item["type"] == "value_error":
            lines.append(f"{prefix}: {item['msg'].removeprefix('Value error, ')}")
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            lines.append(f"{prefix}: {message}, got {item['input']!r}")
    return "\n".join(lines)


def shipped(folder: str) -> list[str]:
    """Names of the YAML files that come with the package in a folder of configs."""
    entries = (importlib.resources.files("evcs_gym.configs") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def read_yaml(folder: str, name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """Source (for messages) and content of a shipped YAML file of ``folder``, or of a path.

    Raises:
        ConfigError: no such name or file, no YAML, or no mapping.
    """
    source, text = _read_text(folder, name_or_path)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: must hold keys and values, got {type(content).__name__}")
    return source, content


def _read_text(folder: str, name_or_path: str | Path) -> tuple[str, str]:
    name, known = str(name_or_path), shipped(folder)
    if name in known:
        entry = importlib.resources.files("evcs_gym.configs") / folder / f"{name}.yaml"
        return f"{name}.yaml", entry.read_text(encoding="utf-8")
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is no UTF-8 text; give a YAML file") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from None
    raise ConfigError(
        f"there is nothing called {name!r} among the shipped {folder}{nearest(name, known)} "
        f"(shipped: {', '.join(known)}; or give the path of a YAML file)"
    )


def validated(model: type[SpecT], content: dict[str, Any], source: str) -> SpecT:
    """The record of a dictionary; ``source`` names it in messages.

    Raises:
        ConfigError: every complaint, one a line.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, model, source)) from None
