"""The published sizes are those that were published."""

from __future__ import annotations

import json

import pytest

from xlstm_jax.config import ConfigError, dumps
from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.presets import find_preset, get_preset, preset_names, preset_summary
from xlstm_jax.training.config import Experiment

EXACT = {
    "mlstm_120m": 120_536_928,
    "mlstm_165m": 163_806_144,
    "mlstm_1.3b": 1_422_559_616,
    "mlstm_7b": 6_889_935_872,
    "mlstm_v1_165m": 164_073_312,
    "mlstm_v1_1.3b": 1_420_839_104,
    "mlstm_v1_2.7b": 2_780_449_600,
    "mlstm_v1_7b": 6_865_424_896,
    "llama_165m": 162_220_800,
    "llama_1.3b": 1_420_396_544,
    "llama_7b": 6_863_196_160,
}

# Of the xLSTM paper's layers, computed by hand from its widths (millions).
PAPER = {
    "xlstm_125m_1_0": 163.81,
    "xlstm_125m_7_1": 163.69,
    "xlstm_350m_1_0": 409.29,
    "xlstm_350m_7_1": 408.44,
    "xlstm_760m_1_0": 840.43,
    "xlstm_760m_7_1": 839.74,
    "xlstm_1.3b_1_0": 1422.56,
    "xlstm_1.3b_7_1": 1420.07,
    "xlstm_2.7b_1_0": 2788.40,
}


@pytest.mark.parametrize(("name", "count"), EXACT.items())
def test_the_peers_sizes_have_exactly_their_parameters(name: str, count: int) -> None:
    assert build_model(get_preset(name).model).param_count == count


@pytest.mark.parametrize(("name", "millions"), PAPER.items())
def test_the_papers_sizes_have_its_parameters(name: str, millions: float) -> None:
    assert build_model(get_preset(name).model).param_count / 1e6 == pytest.approx(millions, abs=0.006)


def test_mixes_have_one_slstm_block_in_eight_and_its_exact_gelu() -> None:
    for name in (name for name in PAPER if name.endswith("7_1")):
        model = get_preset(name).model
        assert isinstance(model, xLSTMLMModelConfig)
        assert len(model.slstm_at) == {24: 2, 48: 6}[model.num_blocks]  # type: ignore[arg-type]
        assert model.slstm_block is not None
        assert model.slstm_block.feedforward is not None
        assert model.slstm_block.feedforward.act_fn == "gelu_exact"


@pytest.mark.parametrize("name", [*EXACT, *PAPER])
def test_published_presets_are_whole_experiments_whose_summary_tells_their_size(name: str) -> None:
    experiment = get_preset(name)
    assert name in preset_names()
    assert Experiment.from_dict(json.loads(dumps(experiment))) == experiment
    assert experiment.model.vocab_size == 50304
    assert experiment.data.vocab_size <= 50304
    assert experiment.training.batch_size % experiment.training.accumulate == 0
    millions = build_model(experiment.model).param_count / 1e6
    assert f"{millions:.1f} million parameters" in preset_summary(name)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("xlstm_125m[7:1]", "xlstm_125m_7_1"),
        ("xLSTM_125M_[1:0]", "xlstm_125m_1_0"),
        ("xlstm_1_3b", "xlstm_1.3b_1_0"),
        ("xlstm-1.3b-7-1", "xlstm_1.3b_7_1"),
        ("xlstm_2.7b", "xlstm_2.7b_1_0"),
        ("mLSTMv1_1.3B", "mlstm_v1_1.3b"),
        ("mlstm_v1_1_3b", "mlstm_v1_1.3b"),
        ("mlstm_1_3b", "mlstm_1.3b"),
        ("llama1.3B", "llama_1.3b"),
        ("QuickStart", "quickstart"),
    ],
)
def test_other_spellings_are_understood(spelling: str, name: str) -> None:
    assert find_preset(spelling) == name
    assert get_preset(spelling) == get_preset(name)


def test_every_listed_name_is_its_own_and_others_are_refused_with_the_near_miss() -> None:
    assert [find_preset(name) for name in preset_names()] == preset_names()
    for other in ("", "xlstm", "10", "xlstm_125m[1:1]", "mlstm_8b"):
        assert find_preset(other) is None
    with pytest.raises(ConfigError, match=r"no preset 'mlstm_v1_8b' \(did you mean 'mlstm_v1_7b'\?\)"):
        get_preset("mlstm_v1_8b")
