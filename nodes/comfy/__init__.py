"""ComfyUI's adapter: how a model of ComfyUI is told a timestep for every pixel, read for its words, and sampled."""
