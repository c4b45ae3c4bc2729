"""Asynchronous denoising (AsynDM, arXiv 2510.04504): every latent pixel has its own timestep.

The core knows tensors and the mathematics only. A host (a ComfyUI model, a diffusers UNet) is asked to
denoise; everything else - schedules, regions, sampling formulas, the loop - is here.
"""
