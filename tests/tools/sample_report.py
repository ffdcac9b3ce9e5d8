"""A report of a GPU that does not exist: every number is made up, to test tables and acceptance lines. Nothing here was measured."""

ENVIRONMENT = {"gpu": "Imaginary H200", "driver": 1, "nvrtc": "0.0"}
ROOF = {"flops": 800e12, "bandwidth": 4e12}


def entry(result, status="done", reason="", quick=False):
    return {"status": status, "reason": reason, "quick": quick, "seconds": 1.0, "result": result, "environment": ENVIRONMENT,
            "date": "2000-01-01 00:00"}  # fmt: skip


def rung(name, ms, share, how="graph of 10", left_out="", error=2e-4):
    timed = ms is not None
    return {"rung": name, "numerics": "exact", "idea": "", "error": error if timed else None, "ms": ms, "gflops": 1e5 if timed else None,
            "gbs": 1e3 if timed else None, "of_roof": share if timed else None, "how": how, "left_out": left_out}  # fmt: skip


def ladder(op, runs, *rows, flop=0, nbytes=0):
    named = {"op": op, "shape": "", "dtype": "float16", "machine": "Imaginary H200"}
    return {**named, "flop": flop, "nbytes": nbytes, "roof": ROOF, "runs": runs, "rows": list(rows)}


def sample() -> dict:
    step = {"ms": 7.0, "wall_ms": 8.0, "fastest_ms": 6.9, "times": 20}
    linear = rung("cublas", 0.02, 0.6, how="9 launches, not a graph: no")
    variants = {"fused, 64×64": 0.4, "fused, 128×160": 0.2, "wgmma, 1 parts": "failed: no", "what the façade takes": 0.21}
    sdpa = {"flash_attention": {"ms": 0.6, "how": ""}, "cudnn_attention": {"ms": 0.4, "how": ""}, "efficient_attention": {"left_out": "no"}}
    conv = {"times": 3, "flop": 10**10, **rung("fused", 0.2, 0.4)}
    return {
        "device": entry({"environment": ENVIRONMENT, "device": {"name": "Imaginary H200", "capability": "9.0", "multiprocessors": 132, "memory": 1,
                                                                "l2_bytes": 60_000_000, "clock_khz": 1, "commit": "abc"}}),
        "ceilings": entry({"float16": ROOF}),
        "probe": entry({"asked": ["mma", "exp2"], "wrong": {}, "exp2 ulp": 1.0}),
        "correctness": entry({"rungs": {"linear/mma": {"cases": 9, "problems": []}}, "wrong": 0, "checks": 9}),
        "attention": entry({"roof": ROOF, "attention unet-64": ladder(
            "attention", "flash", rung("naive", None, None, left_out="keeps few keys"), rung("tiles", 4.0, 0.02), rung("flash", 0.5, 0.25),
            rung("other", None, None, left_out="wrong: relative error 1.0e+00"), flop=10**11, nbytes=10**7)}),
        "group_norm": entry({
            "group_norm vae-512": ladder("group_norm", "two_kernels", rung("two_kernels", 0.05, 0.75), nbytes=134_000_000),
            "group_norm unet-64": ladder("group_norm", "one_pass", rung("one_pass", 0.01, 0.3), nbytes=10_000_000),
        }),
        "gemm": entry({"linear unet-64": ladder("linear", "cublas", linear, flop=10**9, nbytes=10**6)}),
        "unet_convolutions": entry({"roof": ROOF, "2,64,320,320,3,1": conv, "2,32,320,640,3,2": {**conv, "times": 1}}),
        "variants": entry({"conv2d unet-64": variants}),
        "unet": entry({"eager": {**step, "wall_ms": 20.0}, "graph": {**step, "recorded": True, "relative_l2_to_eager": 0.0, "shared": step}}),
        "vae": entry({"decode": {**step, "ms": 12.3}}),
        "image": entry({}, "skipped", "this version's pipeline runs on the CPU only"),
        "torch_ops": entry({
            "attention unet-64": sdpa,
            "conv2d 2,64,320,320,3,1": {"cudnn": {"ms": 0.2, "how": ""}}, "conv2d 2,32,320,640,3,2": {"cudnn": {"ms": 0.1, "how": ""}},
        }),
        "torch_unet": entry({"unet": {**step, "wall_ms": 16.0}, "vae": step}),
        "torch_compile": entry({}, "skipped", "torch is not installed\nmore"),
    }  # fmt: skip
