"""Which is better for inpainting: known pixels shown to the model noised, clean, or ahead?"""
