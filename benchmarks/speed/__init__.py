"""The cost of AsynDM against stock ComfyUI: python -m benchmarks.speed."""
