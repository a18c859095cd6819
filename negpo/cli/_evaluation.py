"""What the commands that evaluate a checkpoint share: loading, progress bars, flags of the model's side."""

import argparse
from typing import Any


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")


def load_model(name: str, args: argparse.Namespace) -> tuple[Any, Any]:
    """Model and tokenizer, on the device. ConfigError when they cannot be loaded, or are not whole."""
    import torch

    from negpo.models import load_causal_lm, load_tokenizer

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(name)
    return load_causal_lm(name, dtype=args.dtype).to(device).eval(), tokenizer


class Bars:
    """A progress bar per stage; as a context it gives the ``report`` callback of a harness."""

    def __init__(self, title: str):
        from negpo.progress import progress_bar

        self.bar, self.title = progress_bar(), title
        self.tasks: dict[str, Any] = {}

    def __enter__(self):
        self.bar.start()
        return self.report

    def __exit__(self, *exception):
        self.bar.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(f"{stage} {self.title}", total=total)
        self.bar.update(self.tasks[stage], completed=done)


def membership_note(detail: dict[str, Any]) -> str:
    """An attack's AUC interval and how many forget rows it finds while hardly ever accusing an unseen row."""
    low, high = detail["interval"]
    rates = ", ".join(f"{value:.1%} at {float(rate):.1%}" for rate, value in detail["tpr_at_fpr"].items())
    return f"95 % {low:.3f} to {high:.3f}; TPR at FPR: {rates}"


def show_metrics(title: str, result: Any, note: Any, out: Any) -> None:
    """Print a result's metrics with ``note(name, detail)`` beside each, what is missing and why, and where it lies."""
    from rich.table import Table

    from negpo.progress import plain_console

    table = Table(title=title)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("note")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4g}", note(name, result.details.get(name, {})))
    for name, reason in result.missing.items():
        table.add_row(name, "-", reason, style="dim")
    console = plain_console()
    console.print(table)
    console.print(f"results: {out / 'summary.json'}, per row: {out / 'rows.jsonl'}", highlight=False, soft_wrap=True)
