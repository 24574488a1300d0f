"""`pack`: pictures in folders or a zip, packed into a parquet."""

from __future__ import annotations

import argparse

from ..errors import OK
from ..packing.pack import PackOptions, pack
from .console import Console
from .runner import consume


def pack_pictures(options: argparse.Namespace) -> int:
    """Run `pack FOLDER|ZIP`."""
    chosen = PackOptions(
        controls=tuple(options.control or ()),
        target=options.target,
        captions=options.captions,
        caption=options.caption,
        images=options.images,
    )
    with Console() as console:
        packed = consume(console, pack(options.source, options.out, chosen))
        columns = ", ".join([*packed.controls, "target", "caption"])
        pairs = "1 pair" if packed.rows == 1 else f"{packed.rows} pairs"
        console.line(f"Packed {pairs} into {packed.path}, with the columns {columns}.")
    return OK
