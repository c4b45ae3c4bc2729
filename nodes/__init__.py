"""The ComfyUI nodes: schemas and glue, one file per node, over ``comfy`` (ComfyUI's adapter) and ``asyndm_core``."""
