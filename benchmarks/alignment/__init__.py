"""Does asynchronous denoising follow the prompt better? Measured on the demo model: python -m benchmarks.alignment."""
