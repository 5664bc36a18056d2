"""One model family a file: an adapter of its diffusers pipeline."""
