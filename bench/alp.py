"""What ALP costs: training-step time and peak memory, as a ratio to the same model unpatched and to a replaced class.

A Llama-shaped decoder makes whole training steps (forward, backward, AdamW). In every round each variant makes one step
in turn, and the ratio is taken within the round, so that a busy machine hits all alike; on a CPU it is processor time,
not wall time, for the same reason. Neighbours on the machine still show, through the caches that are shared: the
fastest step over the fastest step leaves out most of that. The replaced class does the same maths by hand: torch's own
normals, relative to the RMS, added in float32, in a subclass of the layer. Peak memory is that of a forward and a
backward, one process per variant. Writes bench/results.json.

    python -m bench.alp [--hidden 64 256 1024] [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tailwatch_alp import Perturbation
from tailwatch_alp.noise import perturb

RESULTS = Path(__file__).parent / "results.json"
SIGMA = 0.1
VARIANTS = ("unpatched", "attached, off", "on", "on, learned sigma", "replaced class")
LAYERS = 2
HEAD = 32
VOCABULARY = 512
SEQUENCE = 128
TARGET = 1.03


class Block(nn.Module):
    """Llama's layer: RMSNorm, causal attention, RMSNorm, SwiGLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 2 * int(8 * width / 3), bias=False)
        self.down = nn.Linear(int(8 * width / 3), width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """The residual stream after this block."""
        batch, length, width = x_BSD.shape
        heads = self.qkv(self.attention_norm(x_BSD)).view(batch, length, 3, width // HEAD, HEAD)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BSD = x_BSD + self.output(mixed.transpose(1, 2).reshape(x_BSD.shape))
        gate, hidden = self.up(self.mlp_norm(x_BSD)).chunk(2, -1)
        return x_BSD + self.down(functional.silu(gate) * hidden)  # type: ignore[no-any-return]


class ReplacedBlock(Block):
    """The same with noise written into it, as a patched modelling file has it."""

    def forward(self, x_BSD: Tensor) -> Tensor:
        wide = x_BSD.float()
        rms = wide.detach().square().mean(-1, keepdim=True).sqrt()
        return super().forward((wide + SIGMA * rms * torch.randn_like(wide)).to(x_BSD.dtype))


class Decoder(nn.Module):
    """Embedding, layers, head."""

    def __init__(self, width: int, *, block: type[Block]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(block(width) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits."""
        x_BSD = self.embedding(tokens_BS)
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        return self.head(self.norm(x_BSD))  # type: ignore[no-any-return]


def make_step(
    variant: str, *, width: int, tokens: int, device: torch.device, update: bool = True
) -> Callable[[int], None]:
    """A function that makes one training step of a variant; without `update`, forward and backward only."""
    torch.manual_seed(0)
    model = Decoder(width, block=ReplacedBlock if variant == "replaced class" else Block).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    perturbation = None
    if variant not in {"unpatched", "replaced class"}:
        perturbation = Perturbation(model, sigma=SIGMA, learnable="learned" in variant)
    noisy = perturbation is not None and variant != "attached, off"
    ids = torch.randint(0, VOCABULARY, (tokens // SEQUENCE, SEQUENCE), device=device)

    def step(number: int) -> None:
        optimizer.zero_grad()
        with perturbation.active(step=number) if noisy and perturbation is not None else nullcontext():
            logits = model(ids)
        torch.autograd.backward(functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
        if update:
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def time_ratios(*, width: int, tokens: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Step time of every variant over that of the unpatched model: median and quartiles over rounds."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    steps = {name: make_step(name, width=width, tokens=tokens, device=device) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds + 2):
        # Another order each round: whoever follows the cache of a neighbour does so in turn.
        for name in (*VARIANTS[number % len(VARIANTS) :], *VARIANTS[: number % len(VARIANTS)]):
            start = clock()
            steps[name](number)
            if number >= 2:
                seconds[name].append(clock() - start)
    unpatched = statistics.median(seconds["unpatched"])
    hidden_ND, key = torch.randn(tokens, width, device=device), torch.tensor([1, 2], dtype=torch.int32, device=device)
    alone = []
    for _ in range(20):
        start = clock()
        perturb(hidden_ND, torch.tensor(SIGMA, device=device), key, None, True, 0, 0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        alone.append(clock() - start)
    answer: dict[str, Any] = {
        "tokens": tokens,
        "seconds_unpatched": round(unpatched, 4),
        "operator_share": round(LAYERS * statistics.median(alone) / unpatched, 4),
        "operator_ns_per_entry": round(statistics.median(alone) / (tokens * width) * 1e9, 1),
    }
    for name in VARIANTS[1:]:
        ratios = [a / b for a, b in zip(seconds[name], seconds["unpatched"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        fastest = min(seconds[name]) / min(seconds["unpatched"])
        quartiles = [round(low, 3), round(high, 3)]
        answer[name] = {"ratio": round(median, 3), "quartiles": quartiles, "fastest": round(fastest, 3)}
    return answer


def peak_memory(variant: str, *, width: int, tokens: int, device: torch.device) -> int:
    """Peak bytes of a forward and a backward: of the process on a CPU, allocated on an accelerator."""
    step = make_step(variant, width=width, tokens=tokens, device=device, update=False)
    for number in range(2):
        step(number)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage: its maximum survives exec, and would be that of the parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def memory_in_a_process(variant: str, *, width: int, tokens: int) -> int:
    """The same, alone in a fresh process."""
    command = [sys.executable, "-m", "bench.alp", "--peak", variant, "--hidden", str(width), "--tokens", str(tokens)]
    # Every tensor in a mapping of its own: freed memory goes back at once, and the peak has no fragments in it.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
    return int(done.stdout)


def tokens_for(width: int) -> int:
    """Fewer where a step is dear: the ratio hardly depends on it."""
    return 1024 if width <= 256 else 512


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.alp", description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256, 1024], help="hidden sizes")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.peak:
        print(peak_memory(arguments.peak, width=arguments.hidden[0], tokens=arguments.tokens, device=device))
        return
    curve = {}
    for width in arguments.hidden:
        tokens = tokens_for(width)
        print(f"measuring: hidden size {width}, {tokens} tokens ...", flush=True)
        curve[str(width)] = time_ratios(width=width, tokens=tokens, rounds=arguments.rounds, device=device)
    widest = max(arguments.hidden)
    tokens = 4 * tokens_for(widest)
    peaks = {name: memory_in_a_process(name, width=widest, tokens=tokens) for name in VARIANTS}
    activation = tokens * widest * 4
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["alp"] = {
        "command": f"python -m bench.alp --hidden {' '.join(map(str, arguments.hidden))} --rounds {arguments.rounds}",
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "note": "float32; processor time on a CPU; ratios to the unpatched model within a round, median and quartiles; "
        "fastest: fastest step over fastest unpatched step; "
        "operator_share is the operator alone on every layer, over the unpatched step; the machine is shared",
        "target": {"ratio": TARGET, "hidden_at_least": 1024},
        "hidden": curve,
        "peak_memory": {
            "hidden": widest,
            "tokens": tokens,
            "activation_bytes": activation,
            "ratio": {name: round(peak / peaks["unpatched"], 3) for name, peak in peaks.items()},
            "extra_activations": {
                name: round((peak - peaks["unpatched"]) / activation, 2) for name, peak in peaks.items()
            },
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{'step time / unpatched':24}" + "".join(f"{'D = ' + str(width):>22}" for width in arguments.hidden))
    for name in VARIANTS[1:]:
        cells = [curve[str(width)][name] for width in arguments.hidden]
        shown = [f"{cell['ratio']:.3f} [{cell['quartiles'][0]:.3f}, {cell['quartiles'][1]:.3f}]" for cell in cells]
        print(f"{name:24}" + "".join(f"{text:>22}" for text in shown))
        print(f"{'  fastest / fastest':24}" + "".join(f"{cell['fastest']:22.3f}" for cell in cells))
    shares = "".join(f"{curve[str(width)]['operator_share']:22.4f}" for width in arguments.hidden)
    print(f"{'operator alone / step':24}{shares}")
    print(f"\n{'peak memory / unpatched':24}" + f"{'D = ' + str(widest):>22}{'activations more':>20}")
    for name in VARIANTS[1:]:
        memory: Any = results["alp"]["peak_memory"]
        print(f"{name:24}{memory['ratio'][name]:22.3f}{memory['extra_activations'][name]:20.2f}")
    print("\nwritten to bench/results.json")


if __name__ == "__main__":
    main()
