"""Adaptive Layerwise Perturbation for torch models."""
