"""Language modeling, masked (Devlin et al. 2019) and causal (Radford et al. 2018)."""
