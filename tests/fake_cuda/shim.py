"""The library that makes torch's CPU build take CUDA for its accelerator. Does not import torch: it must come first."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")
LIBRARIES = Path(__file__).parents[2] / ".pytest_cache" / "fake_cuda"


def missing() -> str | None:
    """Say why fake cuda cannot run here; None where it can."""
    if sys.platform != "linux":
        return "the shim of fake cuda is built for Linux"
    if shutil.which("g++") is None:
        return "fake cuda needs g++"
    if "cuda: Optional[str] = None" not in _torch_version():
        return "fake cuda needs torch's CPU build"
    return None


def load() -> None:
    """Compile the shim, once for each installation of torch, which it is linked to, and load it into this process."""
    assert "torch" not in sys.modules, "the shim comes before torch"
    installation = f"{_torch_folder()}\n{_torch_version()}".encode()
    library = LIBRARIES / f"{hashlib.sha256(SOURCE.read_bytes() + installation).hexdigest()[:16]}.so"
    if not library.exists():
        _compile(library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _compile(library: Path) -> None:
    """Compile to a file of this process's own first: several may need the library at once."""
    library.parent.mkdir(parents=True, exist_ok=True)
    torch, own = _torch_folder(), library.with_suffix(f".{os.getpid()}.so")
    subprocess.run(
        [
            *("g++", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(own)),
            *(f"-I{torch}/include", f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-lc10", "-ltorch_cpu"),
        ],
        check=True,
    )
    own.replace(library)


def _torch_folder() -> Path:
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _torch_version() -> str:
    return (_torch_folder() / "version.py").read_text(encoding="utf-8")
