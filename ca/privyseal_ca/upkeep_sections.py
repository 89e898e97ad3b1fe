"""The sections of the settings for what the service does to keep itself up. See :mod:`privyseal_ca.sections`."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from privyseal_ca.sections import Section


class BackupSettings(Section):
    """Backups that the service makes by itself, one after the other into one folder."""

    folder: Path | None = Field(
        None,
        description="Absolute path of the folder into which they go, outside of the home and best on another disk or machine. "
        "Default: none are made.",
    )
    recipients: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Whose age identities open them: `age1...`, or `@FILE` with one in each line; see "
        "`privyseal backup create`.",
    )
    every: int = Field(86400, ge=3600, le=31 * 86400, description="How long after one the next is made.")
    keep: int = Field(
        7,
        ge=1,
        le=1000,
        description="How many are kept: when there is a new one, older ones go. Other files in the folder stay.",
    )

    @field_validator("folder", mode="before")
    @classmethod
    def _none_when_empty(cls, value: Any) -> Any:
        # An empty path would be the folder in which the service was started.
        return None if value == "" else value

    @field_validator("folder")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @field_validator("recipients")
    @classmethod
    def _recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.startswith(("age1", "@/")) for text in value):
            raise ValueError("must each begin with age1, or be @ and the absolute path of a file")
        return value

    @model_validator(mode="after")
    def _somebody_opens_them(self) -> "BackupSettings":
        if self.folder is not None and not self.recipients:
            raise ValueError("recipients must name somebody when there is a folder")
        return self
