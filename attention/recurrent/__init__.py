"""Attention for recurrent networks: alignments of a decoder with the states of an encoder."""
