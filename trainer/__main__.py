"""`python -m trainer`."""

from __future__ import annotations

try:
    from .cli.main import main
    from .cli.stopping import leave
except KeyboardInterrupt:  # Ctrl-C in the first moments
    raise SystemExit(130) from None

if __name__ == "__main__":
    leave(main())
