"""From what a user calls a model to its place on the disk: the embedded one, a folder, a single file, or a model on the Hugging Face hub.

HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN are honoured by huggingface_hub, which is imported for hub models only.
"""

import difflib
import errno
import importlib.resources
import logging
import os
import re
import shlex
import shutil
from pathlib import Path

from ..errors import FetchError, MinisdError, ModelFileError, ResourceError, UsageError
from .report import in_bytes, some
from .variants import PICKLES, STEMS, available, choose_weights, shards

log = logging.getLogger("minisd")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
CONFIG_FILES = ("model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in STEMS))
TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json", "added_tokens.json",
)  # fmt: skip
VOCABULARY = TOKENIZER_FILES[:4]  # what all official models have
OTHER_HOME = "set HF_HOME to a folder that you can write to"
EXAMPLE = "CompVis/stable-diffusion-v1-4"
# Official models that have left their old address.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    **{
        f"stabilityai/stable-diffusion-{name}": f"sd2-community/stable-diffusion-{name}"
        for name in ("2", "2-base", "2-1", "2-1-base", "2-inpainting")
    },
}


def resolve(model: str, *, variant: str | None = None, revision: str | None = None) -> Path:
    """The folder of a model: "tiny" (embedded), a folder, or a hub id "ORG/NAME", which is fetched; a single file stands for itself.

    Only the files that minisd reads are fetched: configs, tokenizer, and the safetensors of the variant; no .bin, .ckpt, .py.
    Raises FetchError (hub, network, cache), ResourceError (disk), UsageError (no model).
    """
    model = os.fspath(model)
    if model == "tiny":
        return Path(str(importlib.resources.files("minisd"))) / "weights"
    path = os.path.expanduser(model)
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        if variant is not None:
            raise UsageError(f"{path} has no variant {variant!r}", "only folders have several files to choose from", "leave the variant out")
        return Path(path)
    if model.endswith((".safetensors", *PICKLES)) and "://" not in model:
        near = difflib.get_close_matches(os.path.basename(path), _entries(os.path.dirname(path) or "."), n=1, cutoff=0.75)
        fix = f"did you mean {os.path.join(os.path.dirname(model), near[0])}?" if near else "check the path"
        raise UsageError(f"there is no file {model}", "", fix)
    if "://" in model:
        found = re.fullmatch(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+).*", model)
        fix = f"use its id: {found[1]}" if found else f"give a folder, or a hub id such as {EXAMPLE}"
        raise UsageError(f"{model} is an address of the web", "minisd fetches models from the hub by id only", fix)
    if HUB_ID.fullmatch(model):
        return fetch(model, variant=variant, revision=revision)
    fix = _suggestion(model) or "check the spelling; “tiny” is the embedded model"
    raise UsageError(f"there is no model {model!r}", "it is neither “tiny”, nor a folder or file, nor a hub id ORG/NAME", fix)


def _suggestion(model: str) -> str:
    """Folders beside it, or models, that are spelt almost like this."""
    parent = os.path.dirname(model.rstrip("/")) or "."
    names = [os.path.normpath(os.path.join(parent, name)) for name in _entries(parent) if os.path.isdir(os.path.join(parent, name))]
    names += ["tiny", EXAMPLE, *MOVED.values(), "stabilityai/sd-turbo"]
    by_key = {key: name for name in names for key in (name.lower(), os.path.basename(name).lower())}
    keys = difflib.get_close_matches(model.lower()[:200], by_key, n=3, cutoff=0.75)
    choices = " or ".join(dict.fromkeys(by_key[key] for key in keys if by_key[key] != model))
    return f"did you mean {choices}?" if choices else ""


def _entries(parent: str) -> list[str]:
    try:
        return sorted(os.listdir(parent))
    except (OSError, ValueError):
        return []


# ----- the hub --------------------------------------------------------------------------------------------------------


def fetch(repo: str, *, variant: str | None = None, revision: str | None = None) -> Path:
    """The model's folder in the hub's cache, brought up to date if the hub can be reached."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        siblings = HfApi(library_name="minisd").model_info(repo, revision=revision, files_metadata=True).siblings
    except Exception as error:  # no network, offline, gated, gone: what is in the cache still serves
        return _cached(repo, variant, revision, error)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    wanted = files_needed(sizes, variant, repo)
    _check_disk(repo, revision, {name: sizes[name] for name in wanted})
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, library_name="minisd"))
    except Exception as error:
        raise _explained(repo, revision, error) from None


def fetch_tokenizer(places, file: Path) -> Path:
    """The folder with CLIP's vocabulary, for a checkpoint `file` that has none: from the cache, else from the hub.

    places: (hub id, sub-folder), in order of preference; their files are equal
    """
    from huggingface_hub import snapshot_download

    first = None
    for local in (True, False):
        for repo, subfolder in places:
            patterns = [f"{subfolder}/{name}".lstrip("/") for name in VOCABULARY]
            try:
                folder = Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=local, library_name="minisd")) / subfolder
            except Exception as error:  # not in the cache, no network, offline, gone: the next place may do
                first = first if local or first else error
                continue
            if all((folder / name).is_file() for name in VOCABULARY):
                return folder
    (repo, subfolder), *_ = places
    # With the sub-folder, if there is one: `tokenizer_beside` looks in both.
    command = shlex.join(["hf", "download", repo, *(f"{subfolder}/{name}".lstrip("/") for name in VOCABULARY), "--local-dir", str(file.parent)])
    why = f"it is not in the file, not beside it, and {repo} cannot be fetched ({_first_line(first) if first else 'its files are incomplete'})"
    raise FetchError(f"{file} needs CLIP's vocabulary", why, f"run once with network: {command}")


def files_needed(names, variant: str | None, where: str) -> list[str]:
    """Exactly the files of a repository that minisd reads. Raises ModelFileError if they do not make a model."""
    names = sorted(names)
    if absent := [name for name in CONFIG_FILES if name not in names]:
        why = f"it has no {absent[0]}; it holds {some([name for name in names if '/' not in name]) or 'nothing'}"
        what = f"{where} is not a Stable Diffusion model in the diffusers layout"
        raise ModelFileError(what, why, "use a model that has a model_index.json")
    wanted = [*CONFIG_FILES, *(f"tokenizer/{name}" for name in TOKENIZER_FILES if f"tokenizer/{name}" in names)]
    inside = {part: [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")] for part in STEMS}
    mixture = variant is not None and any(variant in available(files, part) for part, files in inside.items())
    for part, files in inside.items():
        file, _ = choose_weights(files, part, variant, where=f"{where}/{part}", mixture=mixture)
        wanted += [f"{part}/{name}" for name in [file, *(shards(files, file) if file.endswith(".json") else ())]]
    return wanted


def _cached(repo: str, variant: str | None, revision: str | None, reason: Exception) -> Path:
    """The model's folder in the cache, if everything needed is there; otherwise raises why it could not be fetched."""
    from huggingface_hub import snapshot_download

    try:
        only = "model_index.json"  # which of the others are needed is decided below, from what is there
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=only, local_files_only=True))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        files_needed(names, variant, repo)
    except ModelFileError as error:
        raise _explained(repo, revision, reason, f"the cache has only a part of it ({error.what})") from None
    except Exception:
        raise _explained(repo, revision, reason) from None
    if type(reason).__name__ != "OfflineModeIsEnabled":
        log.warning("%s: the hub cannot be asked (%s); using the copy in the cache", repo, _first_line(reason))
    return folder


def _check_disk(repo: str, revision: str | None, sizes: dict[str, int]):
    """There is space, and the right to write, for what is not in the cache yet."""
    from huggingface_hub import constants, try_to_load_from_cache

    cached = [name for name in sizes if isinstance(try_to_load_from_cache(repo, name, revision=revision), str)]
    missing = sum(sizes.values()) - sum(sizes[name] for name in cached)
    if not missing:
        return
    folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise FetchError(f"{repo} cannot be stored", f"{folder} is read-only", OTHER_HOME)
    free = shutil.disk_usage(folder).free
    if missing > free:
        why = f"{in_bytes(missing)} to fetch, {in_bytes(free)} free in {folder}"
        fix = "free some space, set HF_HOME to another disk, or fetch the half-sized files with --variant fp16"
        raise ResourceError(f"{repo} does not fit on the disk", why, fix)


def _explained(repo: str, revision: str | None, error: Exception, state: str = "") -> MinisdError:
    """What the hub's exceptions mean, and what to do about each."""
    from huggingface_hub import constants, errors

    cache = constants.HF_HUB_CACHE
    state = state or f"it is not in the cache {cache}"
    near = _suggestion(repo)
    once = f"run `minisd fetch {repo}` once with network, or give a folder" + (f"; {near}" if near else "")
    match error:
        case errors.HFValidationError():
            return FetchError(f"{repo} is no hub id", _first_line(error), f"a hub id is ORG/NAME, such as {EXAMPLE}")
        case errors.GatedRepoError():
            fix = f"accept its conditions at https://huggingface.co/{repo}, then run `hf auth login`"
            return FetchError(f"{repo} is gated", f"its owner asks for a login and consent; {state}", fix)
        case errors.RepositoryNotFoundError():
            private = f"{near or 'check the spelling'}; if it is private, run `hf auth login`"
            fix = f"it has moved: use {MOVED[repo]}" if repo in MOVED else private
            return FetchError(f"the hub has no model {repo}", f"there is no folder of this name either; {state}", fix)
        case errors.RevisionNotFoundError():
            why, fix = "no branch, tag or commit has this name", f"see https://huggingface.co/{repo}/refs"
            return FetchError(f"{repo} has no revision {revision!r}", why, fix)
        case errors.OfflineModeIsEnabled():
            return FetchError(f"{repo} cannot be fetched offline", f"HF_HUB_OFFLINE is set and {state}", once)
        case PermissionError() | OSError(errno=errno.EROFS):
            return FetchError(f"{repo} cannot be stored", f"{cache}: {_first_line(error)}", OTHER_HOME)
        case OSError(errno=errno.ENOSPC):
            fix = "free some space; the download goes on where it stopped"
            return ResourceError(f"the disk is full: {repo} is not complete", f"the cache is {cache}", fix)
    return FetchError(f"{repo} cannot be fetched", f"{_first_line(error)}; {state}", once)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
