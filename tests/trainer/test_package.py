"""The package as others import it."""

import subprocess
import sys
from pathlib import Path

import trainer

REPO = Path(__file__).parents[2]


def test_every_public_name_is_there():
    for name in trainer.__all__:
        assert getattr(trainer, name).__name__ == name


def test_importing_is_cheap_and_knows_no_host():
    code = (
        "import sys, trainer, trainer.cli.parser, trainer.config.request, trainer.data.dataset;"
        "import trainer.events, trainer.models.family;"
        "heavy = ('torch', 'diffusers', 'transformers', 'peft', 'comfy', 'folder_paths');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
