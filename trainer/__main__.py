"""`python -m trainer`."""

from __future__ import annotations

from .cli.main import main
from .cli.stopping import leave

if __name__ == "__main__":
    leave(main())
