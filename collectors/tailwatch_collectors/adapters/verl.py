"""verl: every training batch, on the driver, without a line of code.

`pip install tailwatch-collectors` and `TAILWATCH_URL` are enough for verl 0.9: its plug-in group loads `verl_plugin`,
which hooks the trainer as soon as it is imported. Older versions: `VERL_USE_EXTERNAL_MODULES`.

Layout: everything is response-only, index t is response token t. The V1 trainer keeps samples in TransferQueue and
gives them out as nested tensors; the legacy trainers hold a DataProto padded to [B, R] on the right. `response_mask`
is 1 where the model wrote and is overwritten by rejection sampling; `loss_mask` (V1), or the mask from before the
correction (legacy), is the one without. `old_log_probs` are recomputed before the first update: phase `rollout`.

Version v is the weights after v updates, so that step s trains weights s - 1, as verl's own staleness has it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tailwatch_collectors.adapters import base, rows
from tailwatch_collectors.adapters.base import look
from tailwatch_collectors.adapters.post_import import on_import
from tailwatch_collectors.adapters.wrapping import Arguments, wrap
from tailwatch_collectors.collector import Collector

FIELDS = (
    "responses",
    "response_mask",
    "loss_mask",
    "rollout_log_probs",
    "old_log_probs",
    "entropy",
    "advantages",
    "rm_scores",
    "uid",
    "data_source",
)
"""What is asked of TransferQueue; what it does not have is left out."""

late = base.Late()
"""The collector of the driver process."""

_installed = False


def nested_columns(
    fields: Mapping[str, Any],
    *,
    keys: Sequence[str],
    tags: Sequence[Mapping[str, Any]],
    rejects: bool = False,
) -> dict[str, Any]:
    """Samples of the V1 trainer as keywords of `Collector.record`.

    Args:
        fields: nested tensors of TransferQueue, one row per key, and stacks of strings.
        keys: sample names, `{uid}_{session}_{index}`.
        tags: of each sample: `max_global_steps`, and `is_padding` for copies that fill up the batch.
        rejects: whether rejection sampling is on, so that `response_mask` is what is left of `loss_mask`.
    """
    kept = [row for row, tag in enumerate(tags) if not tag.get("is_padding", False)]

    def ragged(name: str) -> list[Any] | None:
        value = fields.get(name)
        if value is None:
            return None
        every = value.unbind()
        return [every[row] for row in kept]

    versions = [tags[row].get("max_global_steps") for row in kept]
    strings = {name: _strings(fields.get(field)) for name, field in (("prompt_id", "uid"), ("source", "data_source"))}
    return _columns(
        ragged,
        mask="response_mask" if fields.get("loss_mask") is None else "loss_mask",
        mask_post="response_mask" if rejects and fields.get("loss_mask") is not None else None,
        reward="rm_scores",
        entropy="entropy",
        seq_id=[keys[row] for row in kept],
        infer_version=None if None in versions else versions,
        **{name: None if found is None else [found[row] for row in kept] for name, found in strings.items()},
    )


def padded_columns(
    batch: Any,
    *,
    mask: Any = None,
    infer_version: int | None = None,
) -> dict[str, Any]:
    """The DataProto of a legacy trainer as keywords of `Collector.record`.

    Args:
        batch: with `batch` [B, R] tensors, right-padded, and `non_tensor_batch`.
        mask: [B, R] the response mask from before rejection sampling; None: there was none.
        infer_version: version that sampled all of it, where the batch itself does not say (`max_global_steps`).
    """
    tensors, others = batch.batch, batch.non_tensor_batch
    width = int(tensors["responses"].shape[1])
    lengths = rows.integers(tensors["attention_mask"])[:, -width:].sum(1).tolist() if width else []

    def ragged(name: str) -> list[Any] | None:
        value = mask if name == "mask" else tensors.get(name)
        if value is None:
            return None
        array_BR = rows.floats(value) if name != "responses" else rows.integers(value)
        return [array_BR[row, :length] for row, length in enumerate(lengths)]

    versions = _strings(others.get("max_global_steps"))
    known = versions is not None and "None" not in versions
    return _columns(
        ragged,
        mask="response_mask" if mask is None else "mask",
        mask_post=None if mask is None else "response_mask",
        reward="token_level_scores",
        entropy="entropys",
        infer_version=[int(float(one)) for one in versions or ()] if known else infer_version,
        prompt_id=_strings(others.get("uid")),
        source=_strings(others.get("data_source")),
    )


def _columns(
    ragged: Any, *, mask: str, mask_post: str | None, reward: str, entropy: str, **known: Any
) -> dict[str, Any]:
    """Rows of whichever layout as columns; `ragged` gives the rows of a field, or None where there are none."""
    mask_rows = [rows.flags(row) for row in ragged(mask)]
    infer = [rows.floats(row) for row in ragged("rollout_log_probs")]
    found: dict[str, Any] = {
        "infer_logprobs": infer,
        "train_logprobs": [rows.floats(row) for row in ragged("old_log_probs")],
        "mask": mask_rows,
        "token_ids": [rows.integers(row) for row in ragged("responses")],
        **known,
    }
    if mask_post is not None:
        left = [rows.flags(row) for row in ragged(mask_post)]
        found["mask_post"] = [row & before for row, before in zip(left, mask_rows, strict=True)]
    for name, field in (("entropy", entropy), ("advantage", "advantages")):
        value = ragged(field)
        if value is not None:
            found[name] = [rows.floats(row) for row in value]
    if "advantage" in found:
        found["advantage"] = base.per_sequence(found["advantage"], mask_rows)
    scores = ragged(reward)
    if scores is not None:
        found["reward"] = [float(rows.floats(row).sum(dtype=np.float64)) for row in scores]
    turn = [rows.turns(row) for row in mask_rows]
    if any(row.max(initial=0) > 0 for row in turn):
        found["turn"] = turn
    return {name: value for name, value in found.items() if value is not None}


def _strings(value: Any) -> list[str] | None:
    return None if value is None else [str(one) for one in value.tolist()]


# --- the hooks ---


def install() -> None:
    """Hook the trainers of verl, as soon as they are imported. Never raises; a second call does nothing."""
    global _installed  # noqa: PLW0603 - one process has one verl
    if _installed:
        return
    _installed = True
    on_import("verl.trainer.ppo.v1.trainer_base", hook_v1)
    on_import("verl.trainer.ppo.rollout_corr_helper", hook_correction)
    on_import("verl.trainer.ppo.ray_trainer", hook_legacy)
    on_import("verl.experimental.separation.ray_trainer", hook_separation)


def hook_v1(module: ModuleType) -> None:
    """verl 0.9 and later: read the batch while TransferQueue still has it."""

    def after(_outcome: None, _seen: None, arguments: Arguments) -> None:
        trainer, batch = arguments["self"], arguments["batch"]
        step = int(arguments["global_steps"])
        if not _comparable(trainer):
            return
        fields = module.tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(FIELDS))
        if not _both(fields):
            return
        _record(
            trainer,
            step=step,
            train_version=step - 1,
            columns=nested_columns(fields, keys=batch.keys, tags=batch.tags, rejects=_rejects(trainer)),
        )

    wrap(module.PPOTrainer, "_compute_metrics", guard=base.guard, after=after)
    wrap(module.PPOTrainer, "fit", guard=base.guard, after=_finished)


_before_rejection: list[tuple[Any, Any]] = []
"""The last mask from before a correction, and the responses it belongs to; at most one."""


def hook_correction(module: ModuleType) -> None:
    """Legacy trainers: keep the mask that rejection sampling is about to overwrite."""

    def before(arguments: Arguments) -> None:
        tensors = arguments["batch"].batch
        responses = tensors.get("responses")
        if responses is not None:  # the V1 trainer hands over no responses; it keeps a loss_mask
            _before_rejection[:] = [(tensors["response_mask"].clone(), responses)]

    wrap(module, "compute_rollout_correction_and_add_to_batch", guard=base.guard, before=before)


def hook_legacy(module: ModuleType) -> None:
    """The trainer of verl 0.6 to 0.8: its metrics are computed of the finished batch, in `fit`."""
    fitting: list[weakref.ref[Any]] = []

    def begin(arguments: Arguments) -> None:
        fitting[:] = [weakref.ref(arguments["self"])]

    def after(_outcome: Any, _seen: None, arguments: Arguments) -> None:
        trainer = fitting[0]() if fitting else None
        if trainer is not None:
            # Synchronous: the engine has the weights of the last update when it samples.
            version = int(trainer.global_steps) - 1
            record(trainer, arguments["batch"], train_version=version, infer_version=version)

    wrap(module.RayPPOTrainer, "fit", guard=base.guard, before=begin, after=_finished)
    wrap(module, "compute_data_metrics", guard=base.guard, after=after)


def hook_separation(module: ModuleType) -> None:
    """The experimental trainers with rollout and training apart: the batch that is about to be trained on."""

    def after(batch: Any, _seen: None, arguments: Arguments) -> None:
        trainer = arguments["self"]
        version = getattr(trainer, "current_param_version", None)
        record(trainer, batch, train_version=int(trainer.global_steps) - 1 if version is None else int(version))

    wrap(module.SeparateRayPPOTrainer, "_fit_compute_advantage", guard=base.guard, after=after)


def record(trainer: Any, batch: Any, *, train_version: int | None = None, infer_version: int | None = None) -> None:
    """Record the DataProto of a step; for recipes with a `fit` of their own. Never raises.

    Args:
        trainer: has `config` and `global_steps`.
        batch: with `old_log_probs` and `rollout_log_probs`.
        train_version: version of the weights behind `old_log_probs`; None: unknown.
        infer_version: version that sampled it, where the batch does not say; None: unknown.
    """
    with base.guard("verl.record"):
        if not _comparable(trainer):
            return
        if not _both(batch.batch):
            return
        mask = next((mask for mask, responses in _before_rejection if responses is batch.batch["responses"]), None)
        columns = padded_columns(batch, mask=mask if _rejects(trainer) else None, infer_version=infer_version)
        _record(trainer, step=int(trainer.global_steps), train_version=train_version, columns=columns)


def _both(fields: Any) -> bool:
    if fields.get("rollout_log_probs") is not None and fields.get("old_log_probs") is not None:
        return True
    message = "verl: no rollout_log_probs in the batch: set actor_rollout_ref.rollout.calculate_log_probs=True"
    base.guard.once("verl", "rollout_log_probs", message=message)
    return False


def _finished(_outcome: None, _seen: Any, _arguments: Arguments) -> None:
    late.finished()


def _comparable(trainer: Any) -> bool:
    if not look(trainer.config, "algorithm", "rollout_correction", "bypass_mode"):
        return True
    message = (
        "verl: bypass_mode takes the rollout's log-probs for old_log_probs and recomputes none, so there is nothing "
        "to compare on the driver; nothing is recorded"
    )
    base.guard.once("verl", "bypass", message=message)
    return False


def _rejects(trainer: Any) -> bool:
    return bool(look(trainer.config, "algorithm", "rollout_correction", "rollout_rs"))


def _record(trainer: Any, *, columns: dict[str, Any], **meta: Any) -> None:
    collector = late.get(lambda: _connect(trainer.config))
    if collector is not None:
        collector.record(**meta, **columns)


def _connect(config: Any) -> Collector:
    rollout = look(config, "actor_rollout_ref", "rollout")
    mode = look(rollout, "logprobs_mode")
    return base.named(
        "verl",
        project=look(config, "trainer", "project_name"),
        run=look(config, "trainer", "experiment_name"),
        # The driver has the whole batch; the ranks in its environment are not those of the trainer.
        rank=0,
        world_size=1,
        config={
            "temperature": look(rollout, "temperature"),
            "top_p": look(rollout, "top_p"),
            "top_k": look(rollout, "top_k"),
            "precision": look(rollout, "quantization") or look(rollout, "dtype"),
            "logprobs_mode": None if mode is None else str(mode).removesuffix("_logprobs"),
        },
    )
