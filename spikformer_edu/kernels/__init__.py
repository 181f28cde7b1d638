"""Operations of the network fused into one pass; each equals a plain line of ``neurons.py``."""
