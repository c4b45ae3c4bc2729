"""The ComfyUI nodes: schemas and glue over ``asyndm_core``, one file per node."""
