"""A run on the Hugging Face hub: what is sent there, and what stays here."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from safetensors.torch import load_file

from trainer.cli.main import main
from trainer.config.request import parse_request
from trainer.config.samples import DEFAULT_SAMPLES
from trainer.config.settings import RunSettings
from trainer.data import image_refs
from trainer.errors import BadInput
from trainer.hub.model_card import CardSample, model_card
from trainer.tiny.requests import make_request
from trainer.tiny.shapes import make_pair, write_parquet

from ..hub_server import OWNER, READ_TOKEN, TOKEN, HubRepo, HubServer, hub_server

ROOT = Path(__file__).parents[2]
PROMPT = "an edit with | pipes and `ticks`"
REPO = f"{OWNER}/frames"
NAMES = ["README.md", "frames-000004.safetensors", "request.json", "settings.json", "samples/step-000004-00.png"]
NAMES += ["samples/step-000004-01.png"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 steps in a folder with a private name, with a sample of a local image and a default one, for
    which the dataset's own image and caption stood in."""
    folder = tmp_path_factory.mktemp("jane-doe")
    make_pair("frame", 2, 0).control.save(folder / "portrait.png")
    parquet = write_parquet(folder / "frame.parquet", ["frame"], 1, 4)
    samples = [{"ctrl_img_url": str(folder / "portrait.png"), "prompt": PROMPT}, DEFAULT_SAMPLES[0].model_dump()]
    params = {"steps": 4, "sample_every": 2, "batch_size": 1, "samples": samples}
    request = make_request("tiny/flux-kontext", parquet, params) | {"oxen_model_path": "jane-doe/secret"}
    (folder / "frames.json").write_text(json.dumps(request))
    options = ["--out", str(folder / "frames"), "--sample-steps", "1", "--images-root", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_refs, "read_bytes", without_network(image_refs.read_bytes))
        assert main(["train", str(folder / "frames.json"), *options]) == 0
    return folder / "frames"


def without_network(read_bytes):
    """The function that reads images, as on a machine without a network."""

    def read(reference, *rest):
        if reference.kind == "url":
            raise BadInput("no network")
        return read_bytes(reference, *rest)

    return read


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(trained, tmp_path / "frames"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub in place of the real one, and a login there. The client has read its environment when it was imported."""
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def push(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `push`, without the client's progress bars."""
    capsys.readouterr()
    code = main(["push", *map(str, arguments)])
    output, errors = capsys.readouterr()
    return code, output, "".join(line for line in errors.splitlines(True) if line.startswith("error"))


@pytest.mark.slow
def test_exactly_the_listed_files_are_pushed(run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = push(capsys, run, "--repo", REPO, "--private")
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        f"Pushing step 4 to {REPO} (private):",
        *(f"  {name}" for name in NAMES),
        f"Pushed: {hub.url}/{REPO}",
    ]
    repo = hub.repos[REPO]
    assert repo.private and repo.commits == 1
    assert sorted(repo.files) == sorted([*NAMES, ".gitattributes"])
    for name in NAMES[4:]:
        assert repo.files[name] == (run / name).read_bytes()
    (sent := run.parent / "sent.safetensors").write_bytes(repo.files[NAMES[1]])
    own, other = load_file(run / NAMES[1]), load_file(sent)
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.slow
def test_nothing_private_is_sent(trained: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    header = (trained / NAMES[1]).read_bytes()
    assert b"jane-doe" in header and b"portrait.png" in header, "what the run's own file says"
    captions = {json.loads(line).get("prompt") for line in (trained / "log.jsonl").read_text().splitlines()}
    (caption,) = captions - {None, PROMPT}
    assert push(capsys, trained, "--repo", REPO)[0] == 0
    repo = hub.repos[REPO]
    assert not repo.private
    for name in NAMES:
        for secret in ("jane-doe", "portrait.png", str(ROOT), TOKEN, str(Path.home()) + "/"):
            assert secret.encode() not in repo.files[name], f"{secret} in {name}"
    assert all(caption.encode() not in repo.files[name] for name in NAMES)
    request = parse_request(repo.files["request.json"])
    assert request.resource == "frame.parquet" and request.oxen_model_path is None
    assert [(sample.ctrl_img_url, sample.prompt) for sample in request.training_params.samples] == [
        ("", PROMPT),
        (DEFAULT_SAMPLES[0].ctrl_img_url, DEFAULT_SAMPLES[0].prompt),
    ]
    (sent := trained.parent / "sent.safetensors").write_bytes(repo.files[NAMES[1]])
    with safe_open(sent, "pt") as file:
        assert json.loads(file.metadata()["edit_trainer.request"])["training_params"]["lora_rank"] == 16
        assert file.metadata()["edit_trainer.steps"] == "4"


@pytest.mark.slow
def test_an_earlier_step_is_pushed_to_the_same_repository(
    run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(capsys, run, "--repo", REPO, "--private")[0] == 0
    before = sorted(run.iterdir())
    code, output, errors = push(capsys, run, "--repo", REPO, "--private", "--step", "2")
    assert (code, errors) == (0, "")
    assert "  frames-000002.safetensors\n" in output
    repo = hub.repos[REPO]
    assert repo.commits == 2 and "samples/step-000002-00.png" in repo.files
    assert sorted(run.iterdir()) == before, "the exported file is temporary"
    card = ModelCard(repo.files["README.md"].decode())
    assert [image["output"]["url"] for image in card.data.widget] == [
        "samples/step-000002-00.png",
        "samples/step-000002-01.png",
    ]
    assert [image["text"] for image in card.data.widget] == [PROMPT, "-"], "the dataset's caption is not shown"
    assert "| steps | 2 |" in card.text
    code, _, errors = push(capsys, run, "--repo", REPO, "--step", "3")
    assert code == 2 and "has no checkpoint of step 3; it has those of 2, 4." in errors


def refused(hub: HubServer, case: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int, str]:
    """Prepare a case; returns the options, exit code and a part of the message."""
    match case:
        case "no token":
            monkeypatch.delenv("HF_TOKEN")
            return ["--repo", REPO], 2, "There is no login for the Hugging Face hub: run `hf auth login`"
        case "bad token":
            monkeypatch.setenv("HF_TOKEN", "hf_made_up")
            return ["--repo", REPO], 2, "does not accept your token"
        case "odd token":
            monkeypatch.setenv("HF_TOKEN", "hf_made_up\x01and more")
            return ["--repo", REPO], 2, "has characters that no token has"
        case "read token":
            monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
            return ["--repo", REPO], 2, f"may not write to {REPO}"
        case "stranger":
            return ["--repo", "stranger/frames"], 2, "may not write to stranger/frames"
        case "a stranger's repository of this program":
            hub.repos["stranger/frames"] = HubRepo(private=False, tags=["edit-trainer"])
            return ["--repo", "stranger/frames"], 2, "may not write to stranger/frames"
        case "other content":
            hub.repos[REPO] = HubRepo(private=False, files={"README.md": b"mine", ".gitattributes": b""})
            return ["--repo", REPO], 2, "was not made by this program, so it is not overwritten"
        case "public":
            hub.repos[REPO] = HubRepo(private=False, tags=["edit-trainer"])
            return ["--repo", REPO, "--private"], 2, f"{REPO} is public on the Hugging Face hub"
        case "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            huggingface_hub.close_session()
            return ["--repo", REPO], 2, "HF_HUB_OFFLINE is set, so nothing was sent"
        case "down":
            hub.broken = True
            return ["--repo", REPO], 1, "with status 503: down for maintenance"
        case "no network":
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            return ["--repo", REPO], 1, "The Hugging Face hub at http://127.0.0.1:9 cannot be reached"
        case name:
            return ["--repo", name], 2, "is not a repository on the Hugging Face hub; give OWNER/NAME"


CASES = (
    "no token",
    "bad token",
    "odd token",
    "read token",
    "stranger",
    "a stranger's repository of this program",
    "other content",
)
CASES += ("public", "offline", "down", "no network", "frames", "a/b/c", "../frames", "tester/fr ames", "")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_push_that_cannot_be_is_one_message(
    case: str, trained: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, expected, message = refused(hub, case, monkeypatch)
    code, output, errors = push(capsys, trained, *options)
    huggingface_hub.close_session()
    assert code == expected
    assert message in errors and errors.count("\n") == 1
    assert not any(token in errors for token in (TOKEN, READ_TOKEN, "hf_made_up"))
    assert all(repo.commits == 0 for repo in hub.repos.values()) and not hub.objects
    if case in ("no token", "offline") or "OWNER" in message:
        assert not hub.requests
    if case == "no token":
        assert output == ""


@pytest.mark.slow
def test_what_is_no_lora_of_a_run_is_refused(run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = push(capsys, run.parent, "--repo", REPO)
    assert code == 2 and "is not a run folder: it has no request.json" in errors
    request = json.loads((run / "request.json").read_text())
    request["training_params"]["use_lora"] = False
    (run / "request.json").write_text(json.dumps(request))
    code, _, errors = push(capsys, run, "--repo", REPO)
    assert code == 2 and "is a full fine-tune; only LoRAs are pushed" in errors
    request["training_params"]["use_lora"] = True
    (run / "request.json").write_text(json.dumps(request))
    (run / NAMES[1]).write_bytes(b"damaged")
    code, _, errors = push(capsys, run, "--repo", REPO)
    assert code == 2 and "is damaged" in errors
    assert hub.repos == {}


@pytest.mark.slow
def test_the_command_pushes_by_the_clients_own_environment(trained: Path) -> None:
    with hub_server() as hub:
        command = [sys.executable, "-m", "trainer", "push", str(trained), "--repo", REPO, "--private"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | hub.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert sorted(hub.repos[REPO].files) == sorted([*NAMES, ".gitattributes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base_model", "license", "argument"),
    [
        ("black-forest-labs/FLUX.1-Kontext-dev", "other", "guidance_scale"),
        ("Qwen/Qwen-Image-Edit", "apache-2.0", "true_cfg_scale"),
        ("Qwen/Qwen-Image-Edit-2511", "apache-2.0", "true_cfg_scale"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "apache-2.0", "guidance_scale"),
        ("black-forest-labs/FLUX.2-klein-base-9B", "other", "guidance_scale"),
    ],
)
def test_the_card_of_a_published_model_has_its_license_and_code_that_fits(
    base_model: str, license: str, argument: str
) -> None:
    request = parse_request(make_request(base_model, Path("frame.parquet"), {"steps": 8}))
    sample = CardSample("samples/step-000008-00.png", 'say "hi"')
    card = ModelCard(model_card("me/frames", "frames-000008.safetensors", 8, request, RunSettings(), [sample]))
    assert card.data.base_model == base_model and card.data.license == license
    assert (card.data.license_name or "").startswith("flux-" if license == "other" else "")
    assert license != "other" or base_model in card.data.license_link
    assert card.data.pipeline_tag == "image-to-image" and {"lora", "diffusers"} <= set(card.data.tags)
    code = card.text.partition("```py\n")[2].partition("```")[0]
    (call,) = (
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pipeline"
    )
    (imported,) = (node for node in ast.parse(code).body if ast.unparse(node).startswith("from diffusers import"))
    pipeline = getattr(diffusers, imported.names[0].name)
    names = {keyword.arg for keyword in call.keywords}
    assert argument in names and names <= set(inspect.signature(pipeline.__call__).parameters)
    assert next(keyword.value.value for keyword in call.keywords if keyword.arg == "prompt") == sample.prompt
