"""The shape of the house: who may import whom, what a run loads, what never happens, and one dtype through a whole forward pass."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minisd
from minisd import ops
from minisd.checkpoint import component_shapes
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from minisd.params import Params, record_reads
from minisd.tracing import listen, trace

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "minisd").rglob("*.py"))
MODULE_IDS = [str(path.relative_to(ROOT)) for path in MODULES]
every_module = pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)

# ----- imports point one way: cli, pipeline -> models -> layers -> ops -> backend ------------------------------------------

MAY_IMPORT = {
    "errors": set(),
    "blas": set(),  # imported before NumPy
    "backend": {"errors"},
    "gpu": {"ops", "backend", "errors"},  # asks the kernels what they need
    "resident": {"ops"},  # widens its blocks on the workers of the ops
    "params": {"errors", "resident"},
    "config": {"errors"},
    "rng": {"errors"},
    "tokenizer_files": {"errors"},
    "tokenizer": {"tokenizer_files", "errors"},
    "tracing": {"tracefile", "backend", "errors"},
    "statistics": {"ops"},  # its threads
    "tracefile": {"statistics", "ops", "checkpoint", "backend", "errors", "__version__"},  # what a trace writes is safetensors, read by the same reader
    "ops": {"blas", "backend", "errors"},  # knows no config
    "layers": {"ops", "tracing", "backend", "errors"},  # know no model, no config, no checkpoint
    "checkpoint": {"config", "params", "resident", "backend", "errors"},
    "models": {"layers", "ops", "checkpoint", "config", "params", "tracing", "rng", "gpu", "backend", "errors"},
    "adapters": {"checkpoint", "params", "resident", "backend", "errors"},  # change models, and know none
    "schedulers": {"checkpoint", "rng", "backend", "errors"},
    "vjp": {"ops", "layers", "models", "config", "backend", "errors"},  # gradients know the forward pass, which never imports them
    "guidance": {"vjp", "backend", "errors"},
    "learn": {"vjp", "errors"},
    "image": {"video", "backend", "errors"},
    "video": {"errors"},
    "request": {"config", "errors"},
    "loading": {"models", "schedulers", "checkpoint", "tokenizer", "gpu", "errors"},
    "pipeline": {"loading", "models", "image", "request", "rng", "tracing", "gpu", "backend", "errors", "adapters", "prompts"},
    "viz": {"image", "rng", "tracing", "backend", "errors"},  # is given a pipeline, and imports none
    "experiments": {"schedulers"},  # likewise
    "image_input": {"errors"},
    "img2img": {"pipeline", "image_input", "request", "errors"},
    "inpaint": {"pipeline", "image_input", "request", "rng", "errors"},
    "edit": {"pipeline", "img2img", "inpaint", "image_input", "request", "schedulers", "errors"},  # -i and --mask of the command line
    "teacher": {"models", "layers", "ops", "config", "params", "backend", "errors"},
    "measures": set(),
    "compare": {"measures", "teacher", "tracefile", "compare_html", "models", "checkpoint", "errors"},
    "compare_html": {"compare"},
    "onnx_suite": {"ops"},
    "benchmark": {"ops", "backend", "errors"},  # of ops; knows no model
    "commands": {"benchmark", "onnx_suite", "adapters", "prompts", "tokenizer", "viz", "image_input", "pipeline", "loading", "models", "schedulers", "checkpoint",
                 "compare", "tracefile", "tracing", "image", "request", "ops", "rng", "blas", "gpu", "backend", "errors", "__version__"},  # fmt: skip
    "cli": {"commands", "adapters", "prompts", "tokenizer", "edit", "viz", "blas", "pipeline", "loading", "models", "schedulers", "checkpoint", "image",
            "request", "ops", "rng", "tracing", "gpu", "errors", "__version__"},  # fmt: skip
    "prompt_weights": {"errors"},
    "prompts": {"prompt_weights", "backend", "errors"},
    "__main__": {"cli"},
    "__init__": set(),  # its public names are loaded when they are first used
}
THIRD_PARTY = {"numpy", "safetensors", "tokenizers", "huggingface_hub", "PIL", "click", "tqdm", "imageio_ffmpeg"}
ONNX = "minisd/onnx_suite/"  # the one place that may need the `test` extra
LAZY = {"huggingface_hub", "PIL", "tokenizers", "imageio_ffmpeg"}  # imported inside the functions that need them
CUPY = {  # where CuPy's own libraries may be imported, and why
    "minisd/backend.py": "the one place that knows who owns an array",
    "minisd/gpu.py": "the one place that knows what is missing on the way to a GPU",
    "minisd/ops/cuda": "the kernels and their launchers",
    "minisd/benchmark/gpu.py": "events and graphs, to time what the kernels take",
    "minisd/ops/reference.py": "erf is no function of NumPy's, so each owner has its own",
}


def imports(path: Path):
    """(line, absolute dotted name, whether inside a function) of everything that a file imports."""
    package = list(path.relative_to(ROOT).with_suffix("").parts)[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield node.lineno, name, id(node) in inside


def unit(path: Path) -> str:
    """The name below minisd that a file belongs to: ops for minisd/ops/cpu/linear.py."""
    return path.relative_to(ROOT / "minisd").with_suffix("").parts[0]


@every_module
def test_imports_point_one_way(path):
    for line, name, _ in imports(path):
        top, _, rest = name.partition(".")
        if top == "minisd":
            assert rest.partition(".")[0] in MAY_IMPORT[unit(path)] | {unit(path)}, f"{path.name}:{line} imports {name}"


def test_the_forward_pass_knows_no_gradients():
    """vjp is for who asks for it: nothing that makes a picture may import it."""
    users = {unit for unit, allowed in MAY_IMPORT.items() if "vjp" in allowed}
    assert users == {"guidance", "learn"} and not any(users & allowed for allowed in MAY_IMPORT.values())


@every_module
def test_third_parties_are_the_declared_ones(path):
    for line, name, inside in imports(path):
        top = name.partition(".")[0]
        if top in ("cupy", "cupyx"):
            assert str(path.relative_to(ROOT)).startswith(tuple(CUPY)), f"{path.name}:{line} imports {name}"
        elif top == "onnx":
            assert str(path.relative_to(ROOT)).startswith(ONNX), f"{path.name}:{line} imports {name}"
        elif top not in ("minisd", *sys.stdlib_module_names):
            assert top in THIRD_PARTY, f"{path.name}:{line} imports {name}"
            assert inside or top not in LAZY, f"{path.name}:{line} imports {name} for everyone; import it inside the function"


def test_every_unit_has_a_line_in_the_table():
    assert {unit(path) for path in MODULES} <= set(MAY_IMPORT)


def test_no_module_is_imported_in_a_circle():
    """Within a unit too: ops/cpu/norm.py uses activation.py, and not the other way round."""
    edges = {}
    for path in MODULES:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        me = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        top_level = {name for _, name, inside in imports(path) if not inside and name.startswith("minisd")}
        edges[me] = top_level
    known = set(edges)
    edges = {me: {n if n in known else n.rpartition(".")[0] for n in names} & known - {me} for me, names in edges.items()}

    def walk(module, trail):
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        for target in edges[module]:
            if not module.startswith(f"{target}."):  # a package is half loaded when its parts are; they may use what it has so far
                walk(target, [*trail, module])

    for module in edges:
        walk(module, [])


# ----- what never happens --------------------------------------------------------------------------------------------------

FORBIDDEN_IMPORTS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "diffusers",
                     "transformers", "scipy"}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
MENTIONS_OF_PICKLE = {  # why a file may say the word
    "minisd/checkpoint/": "finds pickles and refuses them",
    "minisd/params.py": "copying a view",
    "minisd/schedulers/settings.py": "copying a config",
}


@every_module
def test_nothing_can_run_code_from_a_file(path):
    name = str(path.relative_to(ROOT))
    for line, target, _ in imports(path):
        assert target.partition(".")[0] not in FORBIDDEN_IMPORTS, f"{name}:{line} imports {target}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            assert not (isinstance(node.func, ast.Name) and called in FORBIDDEN_CALLS), f"{name}:{node.lineno} calls {called}"
            if called == "load" and getattr(getattr(node.func, "value", None), "id", "") in ("np", "numpy"):
                allowed = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert allowed.get("allow_pickle") is False, f"{name}:{node.lineno}: np.load without allow_pickle=False"
    if "pickle" in path.read_text(encoding="utf-8").lower():
        assert name.startswith(tuple(MENTIONS_OF_PICKLE)), f"{name} speaks of pickles"


def tracked_files():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: no list of tracked files")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def test_no_tracked_file_knows_this_machine():
    """A path of somebody's home or work folder means that something was only tried there."""
    folders = "|".join(["work", "root", "home", "opt", "mnt", "Users", "scratch"])
    pattern = re.compile(rf"(?<![\w.:/<>…*~-])/({folders})/(?!x\b)\w")  # /home/x is nobody's
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}:{i}: {line.strip()[:100]}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found, "\n".join(found)


def test_tracked_files_are_small():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked_files()}
    big = [f"{name}: {size:,} bytes" for name, size in sizes.items() if size > 2 << 20 and not name.startswith("minisd/weights/")]
    assert not big, f"golden data is small and compressed: {big}"


# ----- names and files -----------------------------------------------------------------------------------------------------


def test_public_names_are_sorted_and_load():
    assert minisd.__all__ == sorted(minisd.__all__)
    for name in minisd.__all__:
        assert getattr(minisd, name) is not None
    assert set(minisd.__all__) <= set(dir(minisd))
    with pytest.raises(AttributeError, match="no attribute 'unet'"):
        minisd.unet


NO_TEST_OF_THEIR_OWN = {
    "minisd/__init__.py": "test_public_names_are_sorted_and_load, above",
    "minisd/__main__.py": "one line; tests/test_cli.py runs it",
    "minisd/ops/__init__.py": "the façade: tests/ops/test_contract.py",
    "minisd/ops/cpu/__init__.py": "only imports its rungs",
    "minisd/ops/cuda/__init__.py": "only imports its rungs",
    "minisd/layers/__init__.py": "empty",
    "minisd/commands/__init__.py": "empty",
    "minisd/onnx_suite/__init__.py": "empty",
    "minisd/benchmark/__init__.py": "empty",
    "minisd/teacher/__init__.py": "only names",
    "minisd/teacher/layers.py": "tests/layers compute each of its functions on golden inputs, tests/teacher/test_replay.py on our own",
    "minisd/teacher/models.py": "the same, tests/models",
    "minisd/vjp/__init__.py": "only names",
    "minisd/vjp/ops/__init__.py": "only names",
    "minisd/vjp/layers/__init__.py": "empty",
    "minisd/vjp/models/__init__.py": "empty",
    "minisd/models/__init__.py": "only names",
    "minisd/adapters/__init__.py": "only names",
    "minisd/checkpoint/__init__.py": "only names",
    "minisd/schedulers/__init__.py": "only names",
    "minisd/viz/__init__.py": "only names",
}


@pytest.mark.parametrize("module", [name for name in MODULE_IDS if name not in NO_TEST_OF_THEIR_OWN])
def test_every_module_has_its_test_file(module):
    """minisd/rng.py -> tests/test_rng.py; the rungs of one op share a file, minisd/ops/cpu/norm.py -> tests/ops/test_norm.py."""
    _, *folders, name = Path(module).parts
    folders = [folder for folder in folders if folder not in ("cpu", "cuda")]
    assert ROOT.joinpath("tests", *folders, f"test_{name}").exists()


def test_the_list_of_exceptions_is_current():
    assert set(NO_TEST_OF_THEIR_OWN) <= set(MODULE_IDS)


@every_module
def test_every_module_says_what_it_is_for(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc and len(doc) > 30


# ----- a run loads little --------------------------------------------------------------------------------------------------

ON_IMPORT = """
import sys
before = set(sys.modules)
import minisd
print(*sorted({m.partition(".")[0] for m in set(sys.modules) - before}))
"""

def run_python(code: str) -> list:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_minisd_loads_nothing():
    assert set(run_python(ON_IMPORT)) - set(sys.stdlib_module_names) == {"minisd"}


def test_a_forward_pass_on_the_cpu_loads_numpy_alone():
    """The three models, tiny: no torch, diffusers, transformers, scipy, cupy; nor anything else that nobody thought of."""
    code = """
import sys
before = set(sys.modules)
import numpy as np
from minisd.config import UNetConfig, VAEConfig
from minisd.models import AutoencoderKL, UNet2DConditionModel
from minisd.params import Params
from minisd.checkpoint.shapes import component_shapes

def model(cls, config, path):
    return cls(config, Params.from_state_dict({n: np.full(s, 0.01, "float32") for n, s in component_shapes(config).items()}, path))

unet = UNetConfig(block_out_channels=(8, 8), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=2,
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=6, attention_head_dim=2)
z = model(UNet2DConditionModel, unet, "unet")(np.ones((1, 4, 6, 4), "float32"), 17, np.ones((1, 5, 6), "float32"))
vae = model(AutoencoderKL, VAEConfig(block_out_channels=(8,), norm_num_groups=2), "vae")
assert vae.decode(z).shape == (1, 3, 6, 4) and vae.encode(vae.decode(z)).sample(3).dtype == np.float32
print(*sorted({m.partition(".")[0] for m in set(sys.modules) - before}))
"""
    foreign = set(run_python(code)) - {"minisd", "numpy", "safetensors", "cython_runtime"} - set(sys.stdlib_module_names)
    assert not [m for m in foreign if not m.startswith("_cython_")]  # NumPy's random generators are written in Cython


# ----- one dtype through a whole forward pass ------------------------------------------------------------------------------

UNET = UNetConfig(
    block_out_channels=(12, 24), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=20, attention_head_dim=(2, 3), norm_num_groups=3, layers_per_block=1,
)  # fmt: skip
VAE = VAEConfig(
    block_out_channels=(6, 12), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=3
)
CLIP = {act: CLIPTextConfig(vocab_size=50, hidden_size=20, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, hidden_act=act)
        for act in ("quick_gelu", "gelu")}  # fmt: skip


def model(cls, config, dtype: str):
    """Random weights of this dtype, named after the config's own shapes."""
    random = np.random.RandomState(0)
    tensors = {name: (0.2 * random.randn(*shape)).astype("float32").astype(dtype) for name, shape in component_shapes(config).items()}
    return cls(config, Params.from_state_dict(tensors, path=cls.component))


def forward(dtype: str) -> list:
    """Prompt to context to noise to picture and back to latents: every layer of the three networks. The results, in order."""
    random = np.random.RandomState(1)
    results, ids = [], np.arange(14).reshape(2, 7)
    for config in CLIP.values():
        results.append(model(CLIPTextModel, config, dtype)(ids))
    z = random.randn(2, 4, 6, 10).astype(dtype)
    noise = model(UNet2DConditionModel, UNET, dtype)(z, np.array([17, 925.25]), results[0])
    vae = model(AutoencoderKL, VAE, dtype)
    picture = vae.decode(noise)
    latents = vae.encode(picture)
    return [*results, noise, picture, latents.mode(), latents.std, latents.sample(7)]


def only(dtype: str):
    """A listener that stops at the first layer whose output is of another dtype."""

    def check(event):
        assert event.output.dtype == np.dtype(dtype), f"{event.name} ({event.kind}) gave {event.output.dtype}"

    return check


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_layer_keeps_the_dtype(dtype):
    with listen(only(dtype)), trace() as seen:
        results = forward(dtype)
    assert len(seen) > 150
    assert {y.dtype for y in results} == {np.dtype(dtype)}
    assert all(np.isfinite(y).all() for y in results)


@pytest.mark.parametrize(
    "op, kind",
    [("linear", "linear"), ("conv2d", "conv2d"), ("group_norm", "group_norm"), ("layer_norm", "layer_norm"), ("geglu", "geglu")],
)
def test_a_leaked_float64_is_caught_at_its_layer(op, kind, monkeypatch):
    """NumPy 2 makes float64 of float32 · np.float64: the listener above has to see it, and to name the layer it came from."""
    honest = getattr(ops, op)
    monkeypatch.setattr(ops, op, lambda *args, **kwargs: honest(*args, **kwargs) * np.float64(1.0))
    with listen(only("float32")), pytest.raises(AssertionError, match=rf"\(({kind})\) gave float64"):
        forward("float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_looking_does_not_change_the_numbers(dtype):
    """Layers fuse norm and SiLU when nobody listens: by the same arithmetic, to the last bit."""
    with trace():
        seen = forward(dtype)
    for name, a, b in zip(("context", "context", "noise", "picture", "mode", "std", "sample"), seen, forward(dtype)):
        assert np.array_equal(a, b), name


def test_one_forward_reads_every_tensor():
    """A tensor that is loaded and never read is a layer that was forgotten."""
    with record_reads() as reads:
        forward("float32")
    for cls, config in ((UNet2DConditionModel, UNET), (AutoencoderKL, VAE), (CLIPTextModel, CLIP["gelu"])):
        unread = {f"{cls.component}.{name}" for name in component_shapes(config)} - reads
        assert not unread, sorted(unread)[:5]


def test_every_layer_function_is_named_after_a_module_of_the_checkpoint():
    """In a trace every name but the taps is the path of tensors: the name of a module in diffusers."""
    modules = set()
    for cls, config in ((UNet2DConditionModel, UNET), (AutoencoderKL, VAE), (CLIPTextModel, CLIP["gelu"])):
        for name in component_shapes(config):
            parts = f"{cls.component}.{name}".split(".")
            modules |= {".".join(parts[:i]) for i in range(1, len(parts))}
    with trace() as seen:
        forward("float32")
    assert {name for name in seen if "/" not in name} <= modules


def test_every_module_can_be_the_first_to_be_imported():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES if p.stem != "__main__"]
    code = f"""
import importlib, sys
for name in {names!r}:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "minisd"]:
        del sys.modules[loaded]
    importlib.import_module(name)
    print(name)
"""
    assert run_python(code) == names
