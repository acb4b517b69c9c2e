"""What a run needs and costs on a TPU slice, found by its compiler on any machine."""
