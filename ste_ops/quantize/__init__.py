"""Quantizers with straight-through gradients."""
