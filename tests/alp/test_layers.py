"""Finding the decoder layers, and reading which of them are meant."""

from __future__ import annotations

import pytest
from torch import nn

from tailwatch_alp.errors import LayerRangeError, LayersNotFoundError
from tailwatch_alp.layers import candidates, find_head, find_layers, select_layers
from tests.alp.models import ARCHITECTURES, LAYERS, Block, Plain, build, hugging_face


@pytest.mark.parametrize("name", [*ARCHITECTURES, "plain", "encoder"])
def test_every_architecture_is_found(name: str) -> None:
    model = build(name)
    stack = find_layers(model)
    assert len(stack.modules) == LAYERS
    path = {"gpt2": "model.transformer.h", "plain": "blocks", "encoder": "encoder.layers"}.get(
        name, "model.model.layers"
    )
    assert stack.path == path
    assert stack.modules == tuple(model.get_submodule(path).children())


def test_experts_inside_a_layer_are_no_stack() -> None:
    class Mixture(Block):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.experts = nn.ModuleList(Block(width) for _ in range(8))

    model = Plain(layers=2)
    model.blocks = nn.ModuleList(Mixture(8) for _ in range(2))
    assert [stack.path for stack in candidates(model)] == ["blocks"]


def test_a_model_that_is_its_own_stack() -> None:
    experts = nn.ModuleDict({"experts": nn.ModuleList(Block(8) for _ in range(4))})
    model = nn.Sequential(experts)
    assert [stack.path for stack in candidates(model)] == [""]


def test_a_layer_that_stands_there_twice_is_one() -> None:
    model = Plain(layers=1)
    model.blocks = nn.ModuleList([model.blocks[0]] * 3)
    for stack in (
        find_layers(model),
        find_layers(model, blocks="blocks"),
        find_layers(model, blocks=list(model.blocks)),
    ):
        assert stack.modules == (model.blocks[0],)


def test_a_model_without_layers_is_refused_with_its_parts() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(LayersNotFoundError, match=r"0 \(Linear\), 1 \(ReLU\).*blocks="):
        find_layers(model)


def test_two_equal_stacks_are_refused_with_the_list() -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = nn.ModuleDict({"layers": nn.ModuleList(Block(8) for _ in range(2))})
            self.language = nn.ModuleDict({"layers": nn.ModuleList(Block(8) for _ in range(2))})

    with pytest.raises(LayersNotFoundError, match=r"vision.layers: 2 x Block.*language.layers: 2 x Block"):
        find_layers(Twin())
    assert find_layers(Twin(), blocks="language.layers").path == "language.layers"


def test_a_small_tower_beside_a_large_stack_does_not_confuse() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.ModuleList(Block(4) for _ in range(2))
            self.layers = nn.ModuleList(Block(16) for _ in range(5))

    assert find_layers(Pair()).path == "layers"


def test_blocks_can_be_given_as_modules_or_a_wrong_path_is_named() -> None:
    model = Plain()
    assert find_layers(model, blocks=list(model.blocks)[:2]).modules == tuple(model.blocks)[:2]
    with pytest.raises(LayersNotFoundError, match=r"nowhere.*token \(Embedding\)"):
        find_layers(model, blocks="nowhere")
    with pytest.raises(LayersNotFoundError, match="'head' is a Linear"):
        find_layers(model, blocks="head")
    with pytest.raises(LayersNotFoundError, match="Block"):
        find_layers(model, blocks=[Block(4)])


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_the_head_of_a_hugging_face_model(name: str) -> None:
    model = hugging_face(name)
    assert find_head(model) is model.lm_head


def test_the_head_of_a_plain_model() -> None:
    model = Plain()
    assert find_head(model) is model.head
    assert find_head(model, head="head") is model.head
    with pytest.raises(LayersNotFoundError, match="no output head"):
        find_head(Block(4))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", tuple(range(28))),
        ("early", (0, 1, 2, 3, 4, 5)),
        ("middle", (11, 12, 13, 14, 15, 16)),
        ("late", (22, 23, 24, 25, 26, 27)),
        (range(12, 18), (12, 13, 14, 15, 16, 17)),
        ([5, 2, 5], (2, 5)),
        (7, (7,)),
    ],
)
def test_layers_by_word_or_number(layers: object, expected: tuple[int, ...]) -> None:
    assert select_layers(layers, count=28) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("word", ["all", "early", "middle", "late"])
def test_every_word_names_a_layer_of_the_smallest_models(word: str, count: int) -> None:
    chosen = select_layers(word, count=count)
    assert chosen
    assert set(chosen) <= set(range(count))


@pytest.mark.parametrize("layers", [28, -1, [3, 99], []])
def test_layers_out_of_range(layers: object) -> None:
    with pytest.raises(LayerRangeError, match=r"0 to 27|empty"):
        select_layers(layers, count=28)  # type: ignore[arg-type]


def test_an_unknown_word() -> None:
    with pytest.raises(LayersNotFoundError, match="'most'"):
        select_layers("most", count=28)
