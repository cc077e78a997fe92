"""Sequence mixers other than `attention.multi_head`."""
