"""What each rung was predicted to reach before anything ran on a GPU, in per cent of the roof: estimates, to stand beside what is measured.

The roof of a product is cuBLAS in float16, 790 TFLOP/s on an H200; of a norm the copy bandwidth, 4.3 TB/s. Float32 on ordinary cores can reach 8.5 %
of the first (67 of 790 TFLOP/s), mma.sync about 63 %, as others have measured (arXiv:2501.12084). The pages of the ladders give the reasons.
"""

PREDICTED = {
    "linear": {"naive": "0.1–1", "shared": "0.5–1.5", "registers": "2–5", "mma": "35–50", "wgmma": "55–75", "cublas": "50–90"},
    "conv2d": {"direct": "0.1–1", "im2col": "25–50", "implicit_gemm": "15–35", "fused": "38–48", "split_k": "30–48", "wgmma": "55–70"},
    "upsample_conv2d": {"shifted_address": "38–48", "split_k": "30–48", "wgmma": "55–70"},
    "attention": {
        "naive": "0.1–1", "online": "0.5–2", "tiles": "1–3", "flash": "13–28", "tuned": "27–45", "few_keys": "40–80", "wgmma": "36–53",
    },
    "group_norm": {"naive": "10–25", "shuffles": "15–33", "two_kernels": "55–67", "one_pass": "60–85"},
    "feed_forward": {"geglu_epilogue": "35–50"},
}  # fmt: skip
