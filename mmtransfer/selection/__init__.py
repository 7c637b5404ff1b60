"""Before training: which encoder, which source, which strategy, is another modality worth it."""
