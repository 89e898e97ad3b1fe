"""``docs/configuration.md``, written from the classes that check the settings."""

import inspect
import json
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from privyseal_ca.config import SETTINGS_FILE, Settings
from privyseal_ca.sections import PolicySettings

_INTRODUCTION: Final = f"""# Configuration

<!-- Written by `privyseal config docs`. Do not edit: change the descriptions in `ca/privyseal_ca/sections.py` and `*_sections.py`. -->

Settings stand in `{SETTINGS_FILE}` in the home. `privyseal init` writes the file with the few keys that matter; every key
has a default. Each can be overridden in the environment under the name given here. Lists and tables in the environment are
JSON. Unknown keys are errors. Times are seconds, sizes bytes. `privyseal config show` shows what is in force, and
`privyseal doctor` whether it works.

The home is `--home DIR`, else `$PRIVYSEAL_HOME`, else `~/.privyseal`.
"""

_WORDS: Final[dict[Any, str]] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    Path: "path",
    IPv4Network: "network",
    IPv6Network: "network",
}
_ORIGINS: Final[dict[Any, str]] = {Literal: "text", dict: "table"}


def configuration_page() -> str:
    """The page."""
    parts = [_INTRODUCTION]
    for name, field in Settings.model_fields.items():
        section = PolicySettings if name == "policy" else field.annotation
        if inspect.isclass(section) and issubclass(section, BaseModel):
            parts.append(_section(name, section))
    return "\n".join(parts)


def _section(name: str, section: type[BaseModel]) -> str:
    if name == "policy":
        heading, environment = "policy.NAME", "PRIVYSEAL_POLICY"
        note = (
            "\nThe policy `default` always exists; external account keys can name others. In the environment all policies "
            f"together are one JSON object in `{environment}`.\n"
        )
    else:
        heading, note = name, ""
    lines = [f"## `[{heading}]`", "", inspect.cleandoc(section.__doc__ or ""), note]
    for key, field in section.model_fields.items():
        variable = "" if name == "policy" else f", `PRIVYSEAL_{name}__{key}`".upper()
        lines.append(f"- **`{key}`** ({_type_of(field)}{variable}): {field.description}")
        lines.append(f"  Default: {_default(field)}.")
        lines += [
            f"  - `{part}` ({_type_of(entry)}): {entry.description} {_default_of_part(entry)}"
            for part, entry in _parts_of(field.annotation).items()
        ]
    return "\n".join(lines) + "\n"


def _type_of(field: FieldInfo) -> str:
    word = _word(field.annotation)
    low = [bound for bound in field.metadata if isinstance(bound, Ge | Gt)]
    high = [bound for bound in field.metadata if isinstance(bound, Le | Lt)]
    limits = [f"at least {bound.ge}" if isinstance(bound, Ge) else f"more than {bound.gt}" for bound in low]
    limits += [f"at most {bound.le}" if isinstance(bound, Le) else f"less than {bound.lt}" for bound in high]
    return " ".join([word, " and ".join(limits)]).strip()


def _word(annotation: Any) -> str:
    if annotation in _WORDS:
        return _WORDS[annotation]
    if get_origin(annotation) in _ORIGINS:
        return _ORIGINS[get_origin(annotation)]
    arguments = [argument for argument in get_args(annotation) if argument not in {NoneType, Ellipsis}]
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return " or ".join(dict.fromkeys(_word(argument) for argument in arguments if _is_type(argument)))
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "tables"
    if get_origin(annotation) is tuple:
        return f"list of {_word(arguments[0])}"
    raise TypeError(f"the manual has no word for {annotation}")


def _is_type(argument: Any) -> bool:
    """Whether it is one, and not what is said of the type before it in an ``Annotated``."""
    return inspect.isclass(argument) or get_origin(argument) is not None


def _parts_of(annotation: Any) -> dict[str, FieldInfo]:
    """The keys of each table in a list of tables; nothing for everything else."""
    for argument in get_args(annotation) if get_origin(annotation) is tuple else ():
        if inspect.isclass(argument) and issubclass(argument, BaseModel):
            return argument.model_fields
    return {}


def _default_of_part(field: FieldInfo) -> str:
    return "Required." if field.is_required() else f"Default: {_default(field)}."


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`{json.dumps([str(item) for item in value])}`"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"
