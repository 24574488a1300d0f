"""Columns: the columns of a parquet that an example is read from, and the fields of a request that name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COLUMN_FIELDS = ("caption_column", "control_image_column", "image_column")
"""Fields of an `image_editing` request that name a column, in the order of `Columns`."""


CONTROL_COLUMNS = "control_image_columns"
"""Field of a `multi_image_editing` request that names the columns of the control images."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the parquet columns that an example is read from."""

    caption: str
    controls: tuple[str, ...]
    """The control images, in the order in which the model sees them."""
    image: str
    """The target."""
    mask: str = ""
    """The mask of the loss, which is no part of a request; empty where there is none."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Columns:
        """Columns from the column fields of a request of either kind."""
        caption, control, image = COLUMN_FIELDS
        controls = fields[CONTROL_COLUMNS] if CONTROL_COLUMNS in fields else [fields[control]]
        return cls(fields[caption], tuple(controls), fields[image])

    def to_fields(self) -> dict[str, Any]:
        """Column names by request field: those of `image_editing` for one control image, of `multi_image_editing` for
        several."""
        caption, control, image = COLUMN_FIELDS
        controls = {control: self.controls[0]} if len(self.controls) == 1 else {CONTROL_COLUMNS: [*self.controls]}
        return {caption: self.caption, **controls, image: self.image}

    @property
    def names(self) -> tuple[str, ...]:
        """Caption, control images, mask if there is one, target."""
        return self.caption, *self.controls, *filter(None, [self.mask]), self.image
