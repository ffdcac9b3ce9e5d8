"""The ONNX standard's own test cases through `minisd.ops`, for `minisd verify --suite onnx` and the tests; the one place that needs onnx."""
