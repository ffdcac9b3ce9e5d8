"""The parts of `tools/gpu_report.py`: each function takes a Record, and puts what it finds there."""
