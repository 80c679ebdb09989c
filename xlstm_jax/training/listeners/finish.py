"""What stands at the end of a run: the model beside the baselines on every held-out document, and samples."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from xlstm_jax.data.store import HeldoutBatch, Split
from xlstm_jax.files import write_atomic
from xlstm_jax.inference.generate import Generator, checked_prompts
from xlstm_jax.inference.sampling import Sampling
from xlstm_jax.machine.progress import Progress, clock
from xlstm_jax.report.table import Comparison, compare, print_comparison
from xlstm_jax.scoring.heldout import HeldOut
from xlstm_jax.training.events import Ended, Event
from xlstm_jax.training.open_run import OpenRun

SAMPLE_TOKENS = 80
SAMPLE_TEMPERATURE = 0.7
OPENINGS, OPENING_WORDS = 2, 4


class Finish:
    """When all steps are made: writes report.json, prints its table and samples. A finished run gets it once."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def handle(self, event: Event) -> None:
        """See `Listener`."""
        match event:
            case Ended(outcome=outcome) if outcome is not None and not outcome.exit_code:
                opened = outcome.opened
                due = outcome.trained or opened.run.read_report(opened.step) is None
                if opened.processes.agree(lambda: due):
                    self._finish(opened)

    def _finish(self, opened: OpenRun) -> None:
        console = self._console
        comparison = final_comparison(opened, console)
        if comparison is not None:
            print_comparison(comparison, console)
        if opened.processes.count == 1:
            print_samples(opened, console)
        elif opened.experiment.training.sample_prompts != ():
            # A token takes many exchanges of a few bytes, which are slow between machines.
            console.print(f"samples, by one process: xlstm generate {opened.run}", soft_wrap=True)
        console.print(f"the run is in {opened.run} (loss curve: {opened.run.plot_path})", soft_wrap=True)


def final_comparison(opened: OpenRun, console: Console) -> Comparison | None:
    """Score the trained model and the baselines on the whole held-out split, and write report.json into the run.

    Returns:
        The comparison, or None where the store has no held-out documents.
    """
    held_out = HeldOut(
        opened.scorer,
        opened.store.split("validation"),
        batch_size=opened.experiment.training.batch_size,
        seq_len=opened.experiment.seq_len,
    )
    if not held_out.num_documents:
        return None

    def progress(batches: Iterator[HeldoutBatch], count: int) -> Iterator[HeldoutBatch]:
        with Progress(console.is_terminal, console).bar("held-out text", count) as bar:
            yield from bar.track(batches)

    score = held_out(opened.state.params, progress)
    if not opened.processes.leader:
        return None
    with clock("packing the held-out text with gzip and xz", console, terminal_only=True):
        comparison = compare(score.bits_per_byte, opened.store)
    report = {"step": opened.step, **score.to_dict(), "comparison": comparison.to_dict()}
    write_atomic(opened.run.report_path, json.dumps(report, indent=2) + "\n")
    return comparison


def openings(split: Split) -> tuple[str, ...]:
    """The first words of a few documents, to be continued."""
    starts = (split.document_bytes(i)[:200].decode(errors="ignore") for i in range(min(split.num_documents, OPENINGS)))
    return tuple(filter(None, (" ".join(start.split()[:OPENING_WORDS]) for start in starts)))


def print_samples(opened: OpenRun, console: Console) -> None:
    """What the trained model makes of the experiment's sample prompts."""
    prompts = opened.experiment.training.sample_prompts
    if prompts is None:
        prompts = openings(opened.store.split("validation"))
    if not prompts:
        return
    with clock("making samples", console, terminal_only=True):
        info = opened.run.read_tokenizer_info()  # of a fork of weights from elsewhere
        generator = Generator(opened.model, opened.state.params, opened.store.tokenizer, info.bos_id, info.stop_ids)
        texts = generator.generate(
            checked_prompts(prompts), Sampling(max_tokens=SAMPLE_TOKENS, temperature=SAMPLE_TEMPERATURE)
        )
    console.print(f"samples at temperature {SAMPLE_TEMPERATURE}:")
    for prompt, text in zip(prompts, texts, strict=True):
        console.print(Text(f"\n{prompt}", "bold").append(text, "not bold"), soft_wrap=True)
    console.print(f"\nmore of them: xlstm generate {opened.run} --prompt {shlex.quote(prompts[0])}", soft_wrap=True)
