"""What a person sees: a line of figures in a terminal, at most ten plain lines elsewhere."""

import io
import re

import pytest
import torch
from rich.console import Console

from sae_mlflow.metrics import Tally
from sae_mlflow.reporting.display import Display
from sae_mlflow.train import EpochRecord, StepRecord

METRICS = {
    "total_loss": 0.5,
    "fvu": 0.25,
    "val_fvu": 0.3,
    "l0_norm": 32.0,
    "dead_fraction": 0.015,
    "tokens_per_second": 12345.6,
}


def shown(width, terminal, epochs=20):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal)
    tally = Tally()
    acts = torch.randn(10, 4)
    tally.add(acts, acts * 0.5, torch.tensor(3.0), torch.ones(8, dtype=torch.bool))
    with Display(console).layer("layer10", epochs, 1) as layer:
        for epoch in range(1, epochs + 1):
            layer.step(StepRecord(epoch, 1, torch.tensor(0.5), torch.tensor(1234), tally))
            layer.epoch(EpochRecord(epoch, METRICS))
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_epoch_loss_fvu_l0_dead_speed_and_time_left(width):
    last = shown(width, terminal=True).replace("\r", "\n").strip().splitlines()[-1]
    figures = r"epoch 20/20 loss 0.500 FVU 0.\d{3} L0 3 dead 1,234 [\d,]+ tok/s"
    bar = r" \S+ 100%" if width == 120 else ""
    assert re.fullmatch(rf"layer10{bar} \d:\d\d:\d\d {figures}", last.rstrip())


def test_elsewhere_a_layer_takes_at_most_ten_plain_lines_the_last_epoch_among_them():
    lines = shown(80, terminal=False).splitlines()
    assert len(lines) == 10
    assert lines[-1] == (
        "layer10  epoch 20/20  loss 0.5000  FVU 0.2500  held-out FVU 0.3000  L0 32.0  "
        "dead 1.5%  12,346 tokens/s"
    )
