"""Two tests run at a time, each with one thread: the small models gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
