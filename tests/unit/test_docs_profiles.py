"""The manual of profiles is what :class:`ProfileDocument` says. Run this file to write the page anew."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic.fields import FieldInfo

from privyseal_ca.issuance.profile import EXTENDED_KEY_USAGES, ProfileDocument, load_profiles

PAGE = Path(__file__).parents[2] / "docs" / "profiles.md"
BEGIN = "<!-- Written by tests/unit/test_docs_profiles.py from ProfileDocument. -->\n"
END = "<!-- End of what is written. -->\n"


def words(annotation: Any) -> str:
    """The type of a field for people."""
    if get_origin(annotation) is Literal:
        return " or ".join(f'`"{value}"`' for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = words(get_args(annotation)[0])
        return f"list of {inner}"
    return {int: "integer", bool: "boolean"}.get(annotation, "text")


def limits(field: FieldInfo) -> str:
    """The bounds of a field for people."""
    unit = " characters" if field.annotation is str else " items"
    found = []
    for bound in field.metadata:
        match bound:
            case Ge(ge=least):
                found.append(f"at least {least}")
            case Le(le=most):
                found.append(f"at most {most}")
            case MinLen(min_length=least):
                found.append(f"at least {least}{unit}")
            case MaxLen(max_length=most):
                found.append(f"at most {most}{unit}")
    return f", {' and '.join(found)}" if found else ""


def default(field: FieldInfo) -> str:
    """What holds when the key is not there."""
    if field.is_required():
        return "required"
    value = field.get_default()
    if value == ():
        return "default `[]`"
    return f'default `"{value}"`' if isinstance(value, str) else f"default `{str(value).lower()}`"


def keys() -> list[str]:
    """The list of keys."""
    return [
        f"- **`{name}`** ({words(field.annotation)}{limits(field)}; {default(field)}): {field.description}"
        for name, field in ProfileDocument.model_fields.items()
    ]


def shown(value: object) -> str:
    """A value of a built-in profile."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def built_in() -> list[str]:
    """The table of built-in profiles."""
    folder = files("privyseal_ca.issuance").joinpath("profiles")
    documents = {name: tomllib.loads(folder.joinpath(f"{name}.toml").read_text()) for name in load_profiles(None)}
    columns = list(documents)
    names = [name for name in ProfileDocument.model_fields if any(name in document for document in documents.values())]
    lines = [f"| | {' | '.join(f'`{column}`' for column in columns)} |", "| --- " * (len(columns) + 1) + "|"]
    lines += [
        f"| `{name}` | {' | '.join(shown(documents[column].get(name, '(default)')) for column in columns)} |"
        for name in names
    ]
    return lines


def written() -> str:
    """What stands between the marks."""
    usages = ", ".join(f"`{name}`" for name in EXTENDED_KEY_USAGES)
    parts = [
        "## Keys\n",
        *keys(),
        "",
        f"Names of extended key usages: {usages}. Others are given as dotted object identifiers.\n",
        "## Built-in profiles\n",
        *built_in(),
        "",
    ]
    return "\n".join(parts)


def test_the_page_is_that_of_the_class() -> None:
    page = PAGE.read_text(encoding="utf-8")
    between = page.partition(BEGIN)[2].partition(END)[0]
    assert between == written(), f"run: .venv/bin/python {Path(__file__).relative_to(PAGE.parents[1])}"


def test_every_key_has_a_description() -> None:
    for name, field in ProfileDocument.model_fields.items():
        assert field.description, name


def test_the_example_is_a_profile() -> None:
    page = PAGE.read_text(encoding="utf-8")
    examples = [block.partition("```")[0] for block in page.split("```toml\n")[1:]]
    assert examples
    for example in examples:
        ProfileDocument.model_validate(tomllib.loads(example))


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + written() + END + rest.partition(END)[2], encoding="utf-8")
