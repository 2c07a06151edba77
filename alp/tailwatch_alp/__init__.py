"""Adaptive Layerwise Perturbation for torch models.

from tailwatch_alp import Perturbation
perturbation = Perturbation(model, sigma=0.1, seed=17)
with perturbation.active(step=step, micro_batch=index):
    logits = model(input_ids).logits
"""

from tailwatch_alp.actuator import Actuator
from tailwatch_alp.errors import AlpError
from tailwatch_alp.perturbation import Perturbation

__version__ = "0.1.0"

__all__ = ["Actuator", "AlpError", "Perturbation", "__version__"]
