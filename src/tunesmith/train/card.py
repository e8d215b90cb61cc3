"""The model card beside a trained adapter or model: only what the run itself knows. Knows nothing about where the card is read.

The same run gives the same card: it holds no times and no places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.train.artifact import SelfTest
from tunesmith.train.checkpoint import TrainingState
from tunesmith.train.methods import METHODS
from tunesmith.train.run import Manifest


def write_card(
    folder: Path, base: Path, manifest: Manifest, state: TrainingState, scores: Mapping[str, float | None], test: SelfTest
) -> None:
    """Write README.md into the artifact's folder, with the header that model hubs read. A score that is None was not measured."""
    plan, facts = manifest.resolved, manifest.facts
    library = "peft" if plan.adapter.kind == "lora" else "transformers"
    trained = f"LoRA of rank {plan.adapter.r}, alpha {plan.adapter.alpha:g}" if library == "peft" else "every weight"
    four = "; its frozen weights in 4 bits (NF4)" if plan.adapter.quantise == "nf4" else ""
    taught = "prompts were given" if METHODS[plan.method].graded else f"rows were given, {facts.trained_tokens:,} trained tokens an epoch"
    scores = {
        **scores,
        "loss over the artifact's own test rows": test.reloaded_loss,
        "loss of the base over the same rows": test.base_loss,
        "loss over the same rows with the base in full precision": test.full_loss,
    }
    lines = [
        f"---\nlibrary_name: {library}\ntags: [tunesmith, {plan.method}]\n---\n# {base.name}, trained with {plan.method}\n",
        f"Base: `{base.name}`, {facts.parameters:,} parameters, digest `{manifest.base}`{four}. Trained: {trained}.",
        "" if plan.adapter.start_from is None else f"Started from the adapter `{Path(plan.adapter.start_from).name}`.",
        f"\n## Data\n\n{facts.rows:,} {taught}, digest `{manifest.data}`.",
        f"\n## Training\n\n{state.step} steps of {plan.batch_size} rows, learning rate {plan.learning_rate:g} ({plan.schedule}),"
        f" seed {plan.seed}, {plan.dtype}. Rows longer than {plan.max_length} tokens: {plan.over_length}.",
        "\n## Scores\n\nIn nats per trained token, except where the method has its own loss. No benchmark was run.\n",
        "| | |\n|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in scores.items() if value is not None),
        "\n## Limits\n\nThe model knows what its base knew and what these rows show; nothing was tested here but the losses above.",
        "\n## Environment\n\n" + ", ".join(f"{name} {value}" for name, value in manifest.environment.items()) + ".",
    ]
    write_atomic(folder / "README.md", "\n".join(line for line in lines if line) + "\n")
