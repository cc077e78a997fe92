"""Greedy decoding, sampling, beam search and CTC."""
