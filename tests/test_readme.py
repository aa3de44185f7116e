"""The README's Python, run as it stands there on a tiny language model."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from faults.tiny import tiny_data

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

pytestmark = pytest.mark.usefixtures("one_thread")


def block(holding: str) -> str:
    (found,) = [each for each in BLOCKS if holding in each]
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, text_file):
    """The names of the README's training from Python, with a tiny `sae_quick.yaml` at hand."""
    folder = tmp_path_factory.mktemp("readme")
    data = tiny_data(tiny_model, text_file) | {"plots": {"after_training": False}}
    (folder / "configs").mkdir()
    (folder / "configs" / "sae_quick.yaml").write_text(yaml.safe_dump(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SAE_MLFLOW_CACHE", str(folder / "cache"))
        patch.setenv("SAE_MLFLOW_STATE", str(folder / "state"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        names: dict = {}
        exec(block("run_training("), names)
        yield names


def test_a_training_from_python_leaves_the_runs_of_a_training(trained):
    store = trained["training"].store
    rows = store.layer_runs(store.find_experiment("python"))
    assert [row.layer for row in rows] == ["layer2", "layer1"]
    assert all(row.params["sae.k"] == "16" for row in rows)


def test_what_fires_on_a_text_and_what_is_written_while_it_is_added(trained, tiny_model):
    run = trained["training"].rows[0].run_id
    code = block("convert_ids_to_tokens").replace("RUN_ID", run)
    names: dict = {}
    exec(code.replace("smollm2-135m", str(tiny_model)), names)
    lm, ids, sae = names["lm"], names["ids"], names["sae"]
    with torch.no_grad():
        read = lm.model(ids, output_hidden_states=True).hidden_states[2][0]
        plain = lm.model.generate(ids, max_new_tokens=20, do_sample=False)
        assert torch.equal(names["latents"], sae.encode(read))
        exec(block("def steer"), names)
        handle = lm.module("layers.1").register_forward_hook(names["steer"])
        steered = lm.model(ids, output_hidden_states=True).hidden_states[2][0]
        handle.remove()
        added = names["strength"] * sae.W_dec[names["latent"]]
        torch.testing.assert_close(steered - read, added.expand_as(read), rtol=0, atol=1e-4)
        again = lm.model.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(again, plain) and not torch.equal(names["steered"], plain)


def test_activations_of_ones_own_train_an_sae(capsys):
    """Sums of 4 of 64 directions, which 64 latents learn."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 32, generator=generator)
    which = torch.rand(20_000, 64, generator=generator).topk(4).indices
    names = {"acts": 3 * directions[which].sum(dim=1)}
    exec(block("class Mine"), names)
    epochs = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [epoch for epoch, _ in epochs] == ["1", "2", "3", "4"]
    assert float(epochs[-1][1]) < 0.2 and float(epochs[-1][1]) < float(epochs[0][1])
