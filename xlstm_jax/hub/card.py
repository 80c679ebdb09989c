"""The model card of an exported run: what it is, what it learned from, how good it is, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_jax.config import ConfigError, from_json
from xlstm_jax.models.language_model import LanguageModelConfig, build_model
from xlstm_jax.runs.errors import DamagedRunError
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
    try:
        training = _training(run, step) if own else {}
        prompt = next(iter(_field(run, "training", "sample_prompts", tuple[str, ...]) or ()), "The ")
    except ConfigError as error:
        raise DamagedRunError(f"{folder.config_path} cannot be used: {error}") from error
    sections = [
        f"A language model of {build_model(config).param_count:,} parameters, "
        f"{'trained' if own else 'converted'} with xlstm-jax.",
        _section("Model", _table(_model(config))),
        _section("Training", _table(training)),
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
    length = _field(run, "training", "seq_len", int) or run["model"].get("context_length")
    batch_size, store = _field(run, "training", "batch_size", int), _field(run, "data", "store", str)
    mixture, sources = _field(run, "data", "mixture", dict), _field(run, "data", "sources", tuple[str, ...])
    texts = list(mixture or sources or ()) or [store]
    facts = {
        "text": ", ".join(f"`{Path(text).name or text}`" for text in texts if text),
        "tokenizer": _field(run, "data", "tokenizer", str),
        "steps": step,
        "tokens a step": batch_size * length if batch_size and length else None,
        "optimizer": _field(run, "optimizer", "name", str),
        "learning rate": _field(run, "optimizer", "lr", float),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _field(run: Mapping[str, Any], part: str, name: str, kind: Any) -> Any:
    """A field of a part of a run's config as a value of that kind; None if it is not there, or null."""
    fields = from_json(dict[str, Any] | None, run.get(part), part)  # type: ignore[arg-type]
    return from_json(kind | None, (fields or {}).get(name), f"{part}.{name}")


def _results(folder: RunFolder, step: int) -> str:
    """The numbers of the run's report, if it is one of this checkpoint."""
    report = folder.read_report(step) or {}
    scores = report.get("comparison") or {"model": report.get("bits_per_byte")}
    facts = {name: f"{value:.3f}" for name, value in scores.items() if isinstance(value, float)}
    return "Bits per byte of held-out text:\n\n" + _table(facts) if facts else ""


def _table(facts: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])
