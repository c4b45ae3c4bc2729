"""The demo model: a small text-to-image latent diffusion model and the picture world it was trained on."""
