"""Every error of the library, one root, each also the built-in it stands for.

AlpError
├── LayersNotFoundError (ValueError)     no decoder layers, or several stacks that could be them: lists the candidates
├── LayerRangeError (IndexError)         a layer number outside the model
├── ScaleError (ValueError)              sigma not positive, not finite or outside its bounds
├── KeyRangeError (ValueError)           seed, step, micro-batch or rank that cannot key the noise
├── HiddenStateError (TypeError)         what a layer received cannot carry noise: integer, quantised, sharded, absent
├── ActivationError (RuntimeError)       the context was entered where it cannot be
│   └── NestedActivationError            ... inside itself
├── AlreadyAttachedError (RuntimeError)  another Perturbation holds these layers
├── ModelChangedError (RuntimeError)     layers replaced or hooks removed since the Perturbation was made
├── RecomputeError (RuntimeError)        a checkpoint recompute whose forward cannot be told
├── NoEffectError (RuntimeError)         the noise was switched on and changed nothing
├── LossInputError (ValueError)          arrays that do not form an objective
├── ProbeError (ValueError)              a sharpness probe that cannot be run
└── DirectiveError (ValueError)          a directive with a field missing or out of range
"""

from __future__ import annotations


class AlpError(Exception):
    """Root of all errors of the library."""


class LayersNotFoundError(AlpError, ValueError):
    """No decoder layers were found, or it is not clear which of several stacks they are."""


class LayerRangeError(AlpError, IndexError):
    """A layer number the model does not have."""


class ScaleError(AlpError, ValueError):
    """Sigma is not positive, not finite, or outside its bounds."""


class KeyRangeError(AlpError, ValueError):
    """A number that keys the noise is negative or no integer."""


class HiddenStateError(AlpError, TypeError):
    """What a layer received cannot carry noise."""


class ActivationError(AlpError, RuntimeError):
    """The context was entered where it cannot be."""


class NestedActivationError(ActivationError):
    """The context was entered inside itself."""


class AlreadyAttachedError(AlpError, RuntimeError):
    """Another Perturbation holds these layers."""


class ModelChangedError(AlpError, RuntimeError):
    """The model is no longer the one the Perturbation was made for."""


class RecomputeError(AlpError, RuntimeError):
    """A checkpoint recompute whose forward cannot be told."""


class NoEffectError(AlpError, RuntimeError):
    """The noise was switched on and changed nothing worth the name."""


class LossInputError(AlpError, ValueError):
    """Arrays that do not form an objective."""


class ProbeError(AlpError, ValueError):
    """A sharpness probe that cannot be run."""


class DirectiveError(AlpError, ValueError):
    """A directive with a field missing or out of range."""
