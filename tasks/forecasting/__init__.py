"""Forecasting: what a series with several channels will be, from its own past."""
