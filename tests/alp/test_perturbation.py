"""The context: clean outside, noise inside, and every way to hold it wrong."""

from __future__ import annotations

import copy
import io
import pickle
import statistics

import pytest
import torch
from torch import Tensor, nn

from tailwatch_alp import Perturbation
from tailwatch_alp.errors import (
    ActivationError,
    AlreadyAttachedError,
    HiddenStateError,
    KeyRangeError,
    LayerRangeError,
    ModelChangedError,
    NestedActivationError,
    NoEffectError,
    ScaleError,
)
from tailwatch_alp.noise import draw, stream_keys
from tests.alp.models import ARCHITECTURES, LAYERS, VOCABULARY, WIDTH, Block, Plain, build, hugging_face, tokens

EVERY_MODEL = [*ARCHITECTURES, "plain", "encoder"]


# --- outside: bit for bit the model nobody touched ----------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", EVERY_MODEL)
def test_outside_the_context_every_bit_is_the_unpatched_models(name: str, training: bool) -> None:
    model, ids = build(name).train(training), tokens(2, 9)
    logits = model(ids).detach()
    model(ids).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    with torch.no_grad():
        no_grad = model(ids)

    perturbation = Perturbation(model, sigma=0.1)

    def check() -> None:
        assert torch.equal(model(ids), logits)
        with torch.no_grad():
            assert torch.equal(model(ids), no_grad)
        model.zero_grad()
        model(ids).sum().backward()
        now = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(now, gradients, strict=True))

    check()
    with perturbation.active(step=0):
        assert not torch.equal(model(ids), logits)
    check()
    with pytest.raises(ZeroDivisionError), perturbation.active(step=0):
        assert model(ids) is not None and 1 / 0  # noqa: PT018 — one statement, as pytest wants it
    check()
    perturbation.detach()
    check()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_an_exception_inside_a_layer_leaves_the_model_clean(name: str) -> None:
    model, ids = build(name), tokens(2, 9)
    logits = model(ids)
    perturbation = Perturbation(model, sigma=0.1)

    def explode(*_: object) -> None:
        raise ZeroDivisionError

    handle = perturbation._modules[1].register_forward_pre_hook(explode)
    with pytest.raises(ZeroDivisionError), perturbation.active(step=0):
        model(ids)
    handle.remove()
    assert torch.equal(model(ids), logits)


def test_nothing_of_it_is_in_the_models_state() -> None:
    model = build("qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    perturbation = Perturbation(model, sigma=0.1, learnable=True)
    with perturbation.active(step=0):
        model(tokens(2, 9)).sum().backward()
    after = io.BytesIO()
    torch.save(model.state_dict(), after)
    assert stream.getvalue() == after.getvalue()
    assert list(model.state_dict()) == list(before)
    assert [name for name, _ in model.named_parameters()] == [
        name for name in before if name in dict(model.named_parameters())
    ]
    assert not any("sigma" in name for name, _ in [*model.named_buffers(), *model.named_modules()])


def test_weights_written_for_the_engine_are_the_same_bytes(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = hugging_face("qwen2")
    plain, patched = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("patched")
    model.save_pretrained(plain)
    with Perturbation(model, sigma=0.1, learnable=True).active(step=0):
        model(tokens(1, 5))
        model.save_pretrained(patched)
    files = sorted(path.name for path in plain.iterdir())
    assert "model.safetensors" in files
    for name in files:
        assert (plain / name).read_bytes() == (patched / name).read_bytes()


def test_a_copy_or_a_pickle_of_the_model_is_clean() -> None:
    model, ids = Plain(), tokens(2, 9)
    logits = model(ids)
    perturbation = Perturbation(model, sigma=0.1)
    with perturbation.active(step=0):
        twin = copy.deepcopy(model)
        loaded = pickle.loads(pickle.dumps(model))  # noqa: S301 — its own bytes
        assert torch.equal(twin(ids), logits)
        assert torch.equal(loaded(ids), logits)
        assert not torch.equal(model(ids), logits)
    Perturbation(twin, sigma=0.1)  # a copy can have its own


# --- inside -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [True, False])
def test_the_noise_of_every_layer_has_the_size_that_was_asked_for(relative: bool) -> None:
    model = Plain(width=64)
    sigmas = (0.05, 0.2, 0.1)
    perturbation = Perturbation(model, sigma=sigmas, relative=relative)
    inputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    with perturbation.active(step=0):
        model(tokens(8, 40))
    received = tuple(inputs)
    # The noise of layer l is what its input has more than the clean computation from the noisy layer below.
    below = [model.token(tokens(8, 40)), *(block(x) for block, x in zip(model.blocks, received, strict=True))]
    for layer, (noisy, clean) in enumerate(zip(received, below, strict=False)):
        noise = noisy - clean.detach()
        unit = clean.detach().square().mean(-1, keepdim=True).sqrt() if relative else 1.0
        z = (noise / (sigmas[layer] * unit)).flatten().double()
        count = z.numel()
        assert abs(z.mean().item()) < 4 / count**0.5
        assert abs(z.square().mean().item() - 1) < 4 * (2 / count) ** 0.5


def test_the_same_place_has_the_same_noise_and_another_has_not() -> None:
    model, ids = Plain(), tokens(2, 9)
    perturbation = Perturbation(model, sigma=0.1, seed=3)

    def run(*, step: int = 5, micro_batch: int = 1) -> Tensor:
        with perturbation.active(step=step, micro_batch=micro_batch):
            return model(ids)  # type: ignore[no-any-return]

    first = run()
    assert torch.equal(run(), first)
    assert not torch.equal(run(step=6), first)
    assert not torch.equal(run(micro_batch=2), first)
    perturbation.data_rank = 1
    assert not torch.equal(run(), first)


def test_two_forwards_in_one_context_differ() -> None:
    model, ids = Plain(), tokens(2, 9)
    perturbation = Perturbation(model, sigma=0.1)
    with perturbation.active(step=0):
        first, second = model(ids), model(ids)
    with perturbation.active(step=0):
        assert torch.equal(model(ids), first)
        assert torch.equal(model(ids), second)
    assert not torch.equal(first, second)


def test_antithetic_pairs_mirror_each_other() -> None:
    model, ids = Plain(layers=1), tokens(2, 9)
    perturbation = Perturbation(model, sigma=0.2)
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    model(ids)
    for antithetic in (False, True):
        with perturbation.active(step=0, antithetic=antithetic):
            model(ids)
    clean, plus, minus = seen
    torch.testing.assert_close(plus + minus, 2 * clean)
    assert not torch.equal(plus, clean)


def test_the_gradients_are_those_of_the_formula_written_out() -> None:
    """Autograd through h + exp(log sigma) RMS(h) z, with the RMS held constant, against the operator."""

    class Written(Plain):
        """The formula in the model itself, with the normals the operator draws."""

        log_sigma: list[Tensor]

        def forward(self, ids: Tensor) -> Tensor:
            x = self.token(ids)
            keys_L2 = stream_keys(seed=3, step=4, micro_batch=5, forward=0, data_rank=0, layers=LAYERS)
            for layer, block in enumerate(self.blocks):
                z = draw(keys_L2[layer], tokens=ids.numel(), features=WIDTH).view_as(x)
                rms = x.detach().square().mean(-1, keepdim=True).sqrt()
                x = block(x + self.log_sigma[layer].exp() * rms * z)
            return self.head(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    written = Written().double()
    model = Plain().double()
    model.load_state_dict(written.state_dict())
    perturbation = Perturbation(model, sigma=(0.1, 0.2, 0.3), seed=3, learnable=True)
    written.log_sigma = [value.double().requires_grad_() for value in perturbation.scale.log_sigma_L.detach().clone()]
    ids = tokens(2, 9)
    with perturbation.active(step=4, micro_batch=5):
        out = model(ids)
    torch.testing.assert_close(out, written(ids), rtol=1e-6, atol=1e-6)
    for result in (out, written(ids)):
        torch.autograd.backward(result.log_softmax(-1)[..., 7].square().mean())
    for a, b in zip(model.parameters(), written.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-8)
    expected = torch.stack([value.grad for value in written.log_sigma if value.grad is not None])
    assert perturbation.scale.log_sigma_L.grad is not None
    torch.testing.assert_close(perturbation.scale.log_sigma_L.grad.double(), expected, rtol=1e-4, atol=1e-8)


def test_noise_on_the_logits_is_not_that_of_the_first_layer() -> None:
    model, ids = Plain(width=VOCABULARY), tokens(4, 30)
    hidden, logits = Perturbation(model, sigma=0.1), Perturbation(model, sigma=0.1, site="logits")
    drawn = []
    for perturbation in (hidden, logits):
        with perturbation.active(step=0):
            assert perturbation.current is not None
            drawn.append(draw(perturbation.current.keys_L2[0], tokens=120, features=VOCABULARY))
            model(ids)
    for power in (1, 2):
        both = torch.stack([z.pow(power).flatten() for z in drawn])
        assert abs(torch.corrcoef(both)[0, 1].item()) < 4.5 / both.shape[1] ** 0.5


def test_a_resumed_run_has_the_same_noise(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("resume") / "alp.pt"
    ids = tokens(2, 9)
    perturbation = Perturbation(build("plain"), sigma=0.1, seed=11, layers=[0, 2])
    perturbation.set_sigma((0.1, 0.3, 0.2))
    perturbation.gain = 0.5
    with perturbation.active(step=40, micro_batch=2):
        expected = perturbation.model(ids)
    torch.save(perturbation.state_dict(), path)

    resumed = Perturbation(build("plain"), sigma=0.9, seed=0)
    resumed.load_state_dict(torch.load(path, weights_only=True))
    with resumed.active(step=40, micro_batch=2):
        assert torch.equal(resumed.model(ids), expected)


def test_a_state_of_another_model_is_refused() -> None:
    state = Perturbation(Plain(layers=2), sigma=0.1).state_dict()
    perturbation = Perturbation(Plain(layers=3), sigma=0.2)
    with pytest.raises(ScaleError, match="2 layers, this model 3"):
        perturbation.load_state_dict(state)
    with pytest.raises(ActivationError, match="relative=True"):
        Perturbation(Plain(layers=2), sigma=0.1, relative=False).load_state_dict(state)
    with pytest.raises(ActivationError, match="version=None"):
        perturbation.load_state_dict({})


def test_a_learned_sigma_that_was_loaded_is_proven_again() -> None:
    weak = Perturbation(Plain(), sigma=1e-6, bounds=(1e-9, 1.0), learnable=True)
    model = Plain().to(torch.bfloat16)
    perturbation = Perturbation(model, sigma=0.1, bounds=(1e-9, 1.0), learnable=True)
    with perturbation.active(step=0):
        model(tokens(4, 20))
    perturbation.load_state_dict(weak.state_dict())
    with pytest.raises(NoEffectError), perturbation.active(step=1):
        model(tokens(4, 20))


@pytest.mark.parametrize("layers", ["all", "early", "middle", "late", [0, 2], range(1, 3), 1])
def test_only_the_chosen_layers_get_noise(layers: object) -> None:
    model = Plain(layers=5)
    perturbation = Perturbation(model, sigma=0.1, layers=layers)  # type: ignore[arg-type]
    inputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with perturbation.active(step=0):
        model(tokens(2, 9))
    below = [model.token(tokens(2, 9)), *(block(x) for block, x in zip(model.blocks, inputs[:5], strict=True))]
    noisy = tuple(layer for layer in range(5) if not torch.equal(inputs[layer], below[layer]))
    assert noisy == perturbation.layers
    assert tuple(effect.layer for effect in perturbation.effect()) == perturbation.layers


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "plain"])
def test_noise_on_the_logits_only(name: str) -> None:
    model, ids = build(name), tokens(2, 9)
    clean = model(ids)
    perturbation = Perturbation(model, sigma=0.1, site="logits")
    with perturbation.active(step=0):
        noise = model(ids) - clean
    unit = clean.square().mean(-1, keepdim=True).sqrt()
    assert (noise / unit).std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(model(ids), clean)


def test_a_gain_of_zero_is_off() -> None:
    model, ids = Plain(), tokens(2, 9)
    clean = model(ids)
    perturbation = Perturbation(model, sigma=0.1)
    perturbation.gain = 0.0
    with perturbation.active(step=0):
        assert torch.equal(model(ids), clean)


def test_sigma_and_layers_change_between_contexts() -> None:
    model, ids = Plain(), tokens(4, 20)
    perturbation = Perturbation(model, sigma=0.1, layers=[0])
    sizes = []
    for sigma in (0.1, 0.3):
        perturbation.set_sigma(sigma)
        with perturbation.active(step=0):
            model(ids)
        sizes.append(perturbation.effect()[0].relative_size)
    assert sizes == pytest.approx([0.1, 0.3], rel=0.05)
    perturbation.set_layers([1, 2])
    with perturbation.active(step=0):
        model(ids)
    assert [effect.layer for effect in perturbation.effect()] == [1, 2]


def test_packed_tokens_have_the_noise_of_padded_ones() -> None:
    lengths, width = (5, 9, 3), 12
    padded = torch.zeros(3, width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        padded[row, :length] = tokens(length, seed=row)
    real = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    index = torch.arange(3 * width).view(3, width)
    model = Plain(layers=1)
    perturbation = Perturbation(model, sigma=0.2)
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with perturbation.active(step=0, token_index=index):
        model(padded)
    with perturbation.active(step=0, token_index=index[real]):
        model(padded[real][None, :])  # one row, no padding
    assert torch.equal(seen[0][real], seen[1][0])


def test_packed_input_of_a_hugging_face_model() -> None:
    model = hugging_face("qwen2")
    ids = tokens(1, 12)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None, :]
    perturbation = Perturbation(model, sigma=0.1)
    with perturbation.active(step=0):
        first = model(ids, position_ids=positions, use_cache=False).logits
    with perturbation.active(step=0):
        assert torch.equal(model(ids, position_ids=positions, use_cache=False).logits, first)
    assert not torch.equal(model(ids, position_ids=positions, use_cache=False).logits, first)


def test_a_layer_that_stands_several_times_in_the_stack_gets_one_noise_per_pass() -> None:
    model = Plain(layers=1)
    model.blocks = nn.ModuleList([model.blocks[0]] * 3)
    perturbation = Perturbation(model, sigma=0.2)
    inputs: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    with perturbation.active(step=0):
        model(tokens(8, 40))
    clean = [model.token(tokens(8, 40)), *(model.blocks[0](x) for x in tuple(inputs))]
    unit = [x.detach().square().mean(-1, keepdim=True).sqrt() for x in clean]
    noises = [(a - b.detach()) / c for a, b, c in zip(inputs[:3], clean[:3], unit[:3], strict=True)]
    assert [noise.std().item() for noise in noises] == pytest.approx([0.2] * 3, rel=0.05)
    assert not torch.allclose(noises[0], noises[1])


def test_a_hidden_state_given_by_name_is_found() -> None:
    class Named(Plain):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.token(tokens)
            for block in self.blocks:
                x = block(x=x)
            return self.head(x)  # type: ignore[no-any-return]

    model, ids = Named(), tokens(2, 9)
    clean = model(ids)
    with Perturbation(model, sigma=0.1).active(step=0):
        assert not torch.equal(model(ids), clean)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan"), float("inf"), 1.5, (0.1, 0.1), (0.1, 0.1, 2.0)])
def test_a_sigma_that_is_none_is_refused_and_leaves_the_model_untouched(sigma: object) -> None:
    model = Plain()
    with pytest.raises(ScaleError, match=r"sigma"):
        Perturbation(model, sigma=sigma)  # type: ignore[arg-type]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_out_of_range_leave_the_model_untouched() -> None:
    model = Plain()
    with pytest.raises(LayerRangeError, match="layer 3: the model has layers 0 to 2"):
        Perturbation(model, sigma=0.1, layers=[3])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("layers", [[1.5], ["first"], None])
def test_layers_that_are_no_numbers(layers: object) -> None:
    with pytest.raises(LayerRangeError, match="is no number"):
        Perturbation(Plain(), sigma=0.1, layers=layers)  # type: ignore[arg-type]


def test_a_probe_that_cannot_be_made_changes_nothing() -> None:
    perturbation = Perturbation(Plain(), sigma=0.1, layers=[1])
    with pytest.raises(LayerRangeError), perturbation.probing(sigma=0.2, layers=[9]):
        pass
    assert perturbation.sigma == (0.1,) * 3
    assert perturbation.layers == (1,)


def test_an_unknown_site() -> None:
    with pytest.raises(ActivationError, match="'attention'"):
        Perturbation(Plain(), sigma=0.1, site="attention")


def test_a_gain_that_is_none() -> None:
    perturbation = Perturbation(Plain(), sigma=0.1)
    for gain in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ScaleError, match="gain="):
            perturbation.gain = gain
    assert perturbation.gain == 1.0


def test_nested_activation_is_refused_and_the_outer_one_goes_on() -> None:
    model, ids = Plain(), tokens(2, 9)
    clean = model(ids)
    perturbation = Perturbation(model, sigma=0.1)
    with perturbation.active(step=4, micro_batch=2):
        with pytest.raises(NestedActivationError, match="step 4, micro-batch 2"), perturbation.active(step=5):
            pass
        assert not torch.equal(model(ids), clean)
    assert torch.equal(model(ids), clean)


def test_activation_inside_inference_mode_is_refused() -> None:
    perturbation = Perturbation(Plain(), sigma=0.1)
    with torch.inference_mode(), pytest.raises(ActivationError, match="no_grad"), perturbation.active(step=0):
        pass
    assert perturbation.current is None


@pytest.mark.parametrize("step", [-1, 1 << 64])
def test_a_step_that_cannot_key_noise(step: int) -> None:
    perturbation = Perturbation(Plain(), sigma=0.1)
    with pytest.raises(KeyRangeError, match="step="), perturbation.active(step=step):
        pass
    assert perturbation.current is None


def test_two_perturbations_on_one_model() -> None:
    model, ids = Plain(), tokens(2, 9)
    first = Perturbation(model, sigma=0.1)
    with pytest.raises(AlreadyAttachedError, match="set_sigma"):
        Perturbation(model, sigma=0.2)
    with first.active(step=0):
        model(ids)
    first.detach()
    with Perturbation(model, sigma=0.2).active(step=0):
        model(ids)
    with pytest.raises(ModelChangedError, match="detached"), first.active(step=0):
        pass


def test_a_layer_replaced_after_attaching_is_noticed() -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=0.1)
    model.blocks[1] = Block(WIDTH)
    with pytest.raises(ModelChangedError, match=r"layer 1 .*detach"), perturbation.active(step=0):
        pass


def test_a_hook_removed_by_somebody_else_is_noticed() -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=0.1)
    model.blocks[2]._forward_pre_hooks.clear()
    with pytest.raises(ModelChangedError, match="hook of layer 2"), perturbation.active(step=0):
        pass


def test_integer_states_are_refused_and_the_model_is_clean_again() -> None:
    class Shallow(nn.Module):
        """Its first layer is the embedding's, so it receives token ids."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Embedding(61, 8)), nn.Sequential(nn.Linear(8, 8))])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model, ids = Shallow(), tokens(2, 9)
    clean = model(ids)
    perturbation = Perturbation(model, sigma=0.1)
    with pytest.raises(HiddenStateError, match=r"torch.int64.*Leave this layer out"), perturbation.active(step=0):
        model(ids)
    assert torch.equal(model(ids), clean)


def test_sharded_states_are_refused_inside_and_let_through_outside(tmp_path_factory: pytest.TempPathFactory) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, distribute_tensor

    store = tmp_path_factory.mktemp("store") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        model = Plain(layers=1)
        perturbation = Perturbation(model, sigma=0.1)
        mesh = init_device_mesh("cpu", (1,))
        hidden = distribute_tensor(torch.randn(2, 9, WIDTH), mesh)

        class Local(Block):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.to_local() if isinstance(x, DTensor) else x)

        model.blocks[0].__class__ = Local
        clean = model.blocks[0](hidden)
        with pytest.raises(HiddenStateError, match="DTensor"), perturbation.active(step=0):
            model.blocks[0](hidden)
        assert torch.equal(model.blocks[0](hidden), clean)
    finally:
        torch.distributed.destroy_process_group()


def test_noise_lost_in_rounding_raises_at_the_start() -> None:
    model, ids = Plain().to(torch.bfloat16), tokens(4, 20)
    perturbation = Perturbation(model, sigma=1e-6, bounds=(1e-8, 1.0))
    message = r"layer 0: only 0\.\d\d% of the entries changed"
    with pytest.raises(NoEffectError, match=message), perturbation.active(step=0):
        model(ids)
    perturbation.set_sigma(0.05)
    with perturbation.active(step=0):
        model(ids)
    effects = perturbation.effect()
    assert statistics.mean(effect.changed_share for effect in effects) > 0.95
    assert statistics.mean(effect.realised_over_nominal for effect in effects) == pytest.approx(1, abs=0.05)
    perturbation.gain = 1e-5  # weaker than what was seen to work: proven again
    with pytest.raises(NoEffectError), perturbation.active(step=1):
        model(ids)


def test_a_context_without_a_forward_raises_at_the_start() -> None:
    perturbation = Perturbation(Plain(), sigma=0.1)
    with pytest.raises(NoEffectError, match=r"layers \[0, 1, 2\] never ran"), perturbation.active(step=0):
        pass


def test_the_error_of_the_body_wins_over_the_missing_effect() -> None:
    with pytest.raises(ZeroDivisionError), Perturbation(Plain(), sigma=0.1).active(step=0):
        raise ZeroDivisionError


def test_layer_count_is_that_of_the_model() -> None:
    assert Perturbation(Plain(layers=4), sigma=0.1, layers=1).layer_count == 4
    assert Perturbation(build("gpt2"), sigma=0.1).layer_count == LAYERS
