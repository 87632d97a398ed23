"""Make ``models/backbones/tiny_tokenizer.json``: byte-level BPE over training sentences and common robot instructions.

Held-out sentences are not in the corpus. Run it again after changing the corpus, and train again whatever uses the file:

    python scripts/make_tiny_tokenizer.py
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from anyvla.data.scenarios import SCENARIOS
from anyvla.simulation.sentences import all_sentences
from anyvla.simulation.world import TARGETS

OUT = Path(__file__).parents[1] / "src/anyvla/models/backbones/tiny_tokenizer.json"
SPECIAL = ["<pad>", "<image>", "<bos>", "<eos>"]

VERBS = ("pick up", "push", "pull", "lift", "grasp", "place", "rotate", "turn", "slide", "move", "touch", "take")
COLORS = ("red", "blue", "pink", "green", "yellow", "white", "black")
THINGS = (
    "block",
    "drawer",
    "switch",
    "button",
    "door",
    "cabinet",
    "lightbulb",
    "table",
    "box",
    "lid",
    "cloth",
    "pot",
    "spoon",
)
PLACES = (
    "on the table",
    "in the drawer",
    "to the left",
    "to the right",
    "forward",
    "backward",
    "up",
    "down",
    "open",
    "closed",
)


def corpus() -> list[str]:
    targets = sorted(TARGETS)
    navigation = {s for scenario in SCENARIOS.values() for target in targets for s in all_sentences(scenario, target, "train")}
    arm = {f"{v} the {c} {t} {p}." for v in VERBS for c in COLORS for t in THINGS for p in PLACES}
    return sorted(navigation) + sorted(arm)


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    # Korean particles stick to their word; a side is the same word with each of them
    sides = pre_tokenizers.Split(Regex("왼쪽|오른쪽|왼편|오른편|좌측|우측"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([sides, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=4,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    OUT.write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=0) + "\n")
    print(f"{OUT}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
