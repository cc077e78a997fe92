"""Attention for recurrent networks: alignments of a decoder with what an encoder left."""
