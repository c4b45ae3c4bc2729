"""AsynDM on a checkpoint of your own: triplets of prompts, removing and editing in your pictures, on many GPUs if you like."""
