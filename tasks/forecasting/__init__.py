"""Forecasting of multivariate series from their past."""
