"""Tests of the server of exported models."""
