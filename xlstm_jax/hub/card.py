"""The model card of an exported run: what it is, what it learned from, how good it is, and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_jax.models.language_model import LanguageModelConfig, build_model
from xlstm_jax.runs.folder import RunFolder

REPORT_FILE = "report.json"

_TRANSFORMERS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{name}"), AutoModelForCausalLM.from_pretrained("{name}")
print(tokenizer.decode(model.generate(**tokenizer("def ", return_tensors="pt"))[0]))
```
"""
_PACKAGE = """\
```python
import json

from dacite import from_dict
from safetensors.torch import load_file
from xlstm import xLSTMLMModel, xLSTMLMModelConfig

model = xLSTMLMModel(from_dict(xLSTMLMModelConfig, json.load(open("{name}/config.json"))))
model.load_state_dict(load_file("{name}/model.safetensors"))
```
"""
_HOW = {
    "xlstm": ("With transformers:", _TRANSFORMERS),
    "llama": ("With transformers:", _TRANSFORMERS),
    "xlstm-package": ("With the PyTorch package xlstm:", _PACKAGE),
}
_LIBRARY = {"xlstm": "transformers", "llama": "transformers", "xlstm-package": "xlstm"}
_LIMITS = (
    "- A base model: it continues text, and follows no instructions.",
    "- Every text begins with the end-of-document token, as in training; the tokenizer puts it there.",
    "- `xlstm generate` lets the first new token replace a prompt's last one where it begins with that (unless\n"
    "  `--no-heal`), so it continues a prompt that ends with a space otherwise than other programs do.",
)
_LIMITS_OF = {
    "xlstm": "- The xLSTM of transformers has no mask for padding: texts of different lengths, padded in one batch,\n"
    "  give other results than each by itself, on whichever side the padding is. Take them one by one.",
    "llama": "- It was trained on texts up to the context length, and has read no longer ones.",
}


def model_card(folder: RunFolder, name: str, format: str, config: LanguageModelConfig, step: int) -> str:
    """README.md of a run's export, as Markdown with the front matter of the Hugging Face Hub.

    Args:
        name: of the exported folder.
        format: that it is written in.
        config: the model's.
        step: of the checkpoint.
    """
    run = folder.read_config_json()
    library = _LIBRARY.get(format, "xlstm-jax")
    lines = [
        *("---", "# license: name one before you publish", f"library_name: {library}", "pipeline_tag: text-generation"),
        *(f"tags: [{'llama' if format == 'llama' else 'xlstm'}, xlstm-jax]", "---", "", f"# {name}", ""),
        f"A language model of {build_model(config).param_count:,} parameters, trained with xlstm-jax"
        if not folder.converted
        else f"A language model of {build_model(config).param_count:,} parameters, converted with xlstm-jax",
        "",
        *("## Model", "", *_table(_model(config))),
        *(("", "## Training", "", *_table(_training(run, step))) if not folder.converted else ()),
        *_results(folder, step),
        *("", "## Use", ""),
    ]
    text = "\n".join(lines)
    if format in _HOW:
        title, code = _HOW[format]
        text += f"{title}\n\n{code.format(name=name)}\nWith xlstm-jax:\n\n"
    text += f'```\nxlstm convert {name} my-run\nxlstm generate my-run --prompt "def "\n```\n\n## Limitations\n\n'
    return text + "\n".join([*_LIMITS, *([_LIMITS_OF[format]] if format in _LIMITS_OF else [])]) + "\n"


def _model(config: LanguageModelConfig) -> dict[str, Any]:
    kinds = list(getattr(config, "block_kinds", ()))
    counts = [f"{kinds.count(kind)} {kind.replace('lstm', 'LSTM')}" for kind in dict.fromkeys(kinds)]
    return {
        "blocks": " and ".join(counts) or f"{config.num_blocks} Transformer",
        "width": config.embedding_dim,
        "vocabulary": config.vocab_size,
        "context length in training": config.context_length,
        "computes in": config.dtype,
    }


def _training(run: Mapping[str, Any], step: int) -> dict[str, Any]:
    data, training, optimizer = (run.get(name) or {} for name in ("data", "training", "optimizer"))
    length = training.get("seq_len") or run["model"].get("context_length")
    sources = list(data.get("mixture") or data.get("sources") or ()) or [data.get("store")]
    facts = {
        "text": ", ".join(f"`{Path(source).name or source}`" for source in sources if source),
        "tokenizer": data.get("tokenizer"),
        "steps": step,
        "tokens a step": training["batch_size"] * length if "batch_size" in training and length else None,
        "optimizer": optimizer.get("name"),
        "learning rate": optimizer.get("lr"),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _results(folder: RunFolder, step: int) -> list[str]:
    """The numbers of the run's report, if it is one of this checkpoint."""
    try:
        report = json.loads((folder.path / REPORT_FILE).read_bytes())
        if report["step"] != step:
            return []
        scores = {name: f"{value:.3f}" for name, value in report["bits_per_byte"].items() if type(value) is float}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return ["", "## Results", "", "Bits per byte of held-out text:", "", *_table(scores)]


def _table(facts: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
