"""Adaptive Layerwise Perturbation for torch models."""

from tailwatch_alp.perturbation import Perturbation

__all__ = ["Perturbation"]
