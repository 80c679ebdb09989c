"""The model card of an exported run: what it is, what it learned from, how good it is, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_jax.models.language_model import LanguageModelConfig, build_model
from xlstm_jax.runs.folder import RunFolder

_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{name}"), AutoModelForCausalLM.from_pretrained("{name}")
print(tokenizer.decode(model.generate(**tokenizer({prompt!r}, return_tensors="pt"))[0]))
```"""
_PACKAGE = """```python
import json
from pathlib import Path

from dacite import from_dict
from safetensors.torch import load_file
from xlstm import xLSTMLMModel, xLSTMLMModelConfig

model = xLSTMLMModel(from_dict(xLSTMLMModelConfig, json.loads(Path("{name}/config.json").read_text())))
model.load_state_dict(load_file("{name}/model.safetensors"))
```"""
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
    run, own = folder.read_config_json(), not folder.converted
    title, code = _HOW.get(format, ("", ""))
    prompt = next(iter((run.get("training") or {}).get("sample_prompts") or ()), "The ")
    sections = [
        f"A language model of {build_model(config).param_count:,} parameters, "
        f"{'trained' if own else 'converted'} with xlstm-jax.",
        _section("Model", _table(_model(config))),
        _section("Training", _table(_training(run, step))) if own else "",
        _section("Results", _results(folder, step)),
        _section("Use", f"{title}\n\n{code.format(name=name, prompt=prompt)}" if title else ""),
        f"With xlstm-jax:\n\n```\nxlstm convert {name} my-run\nxlstm generate my-run --prompt {prompt!r}\n```",
        _section("Limitations", "\n".join([*_LIMITS, *([_LIMITS_OF[format]] if format in _LIMITS_OF else [])])),
    ]
    front = [
        *("# license: name one before you publish", f"library_name: {_LIBRARY.get(format, 'xlstm-jax')}"),
        *("pipeline_tag: text-generation", f"tags: [{'llama' if format == 'llama' else 'xlstm'}, xlstm-jax]"),
    ]
    return "\n".join(["---", *front, "---", "", f"# {name}", ""]) + "\n" + "\n\n".join(filter(None, sections)) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}".rstrip() if text or title == "Use" else ""


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


def _results(folder: RunFolder, step: int) -> str:
    """The numbers of the run's report, if it is one of this checkpoint."""
    report = folder.read_report(step) or {}
    scores = report.get("comparison") or {"model": report.get("bits_per_byte")}
    facts = {name: f"{value:.3f}" for name, value in scores.items() if isinstance(value, float)}
    return "Bits per byte of held-out text:\n\n" + _table(facts) if facts else ""


def _table(facts: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])
