"""The table of AutoAttack in ``docs/results.md`` from the cards in ``docs/evaluation``.

    python benchmarks/auto_attack_cards.py

Takes the cards of CIFAR-10 that ``der-tf evaluate --out docs/evaluation/NAME`` has written.
"""

from __future__ import annotations

import json
from pathlib import Path

from pages import fill

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "docs" / "evaluation"
PAGE = ROOT / "docs" / "results.md"


def line(name: str, card: dict) -> str:
    """Markdown: the row of one card."""
    whole = card["attacks"]["auto_attack"]
    first, *_, square = whole["log"]
    low, high = whole["interval"]
    cells = (
        f"[{name}](evaluation/{name}.md)",
        f"{card['threat_model']['epsilon'] * 255:.3g}/255",
        f"{card['images']:,}",
        f"{card['natural']['accuracy']:.1%}",
        f"{first['robust_accuracy']:.1%}",
        f"**{whole['accuracy']:.1%}** ({low:.1%} – {high:.1%})",
        f"{square['broken']} of {square['attacked']}",
    )
    return f"| {' | '.join(cells)} |".replace("%", " %")


def main() -> None:
    heads = ("card", "eps", "test images", "natural", "APGD-CE", "AutoAttack (95 %)")
    lines = [
        f"| {' | '.join(heads)} | broken by Square alone |",
        "| --- " * 7 + "|",
    ]
    cards = {path.stem: json.loads(path.read_text()) for path in CARDS.glob("*.json")}
    lines += [
        line(name, card)
        for name, card in sorted(
            cards.items(), key=lambda item: (item[1]["threat_model"]["epsilon"], item[0])
        )
        if card["dataset"] == "cifar10" and "auto_attack" in card["attacks"]
    ]
    fill(PAGE, "auto_attack_cards.py", "\n".join(lines))


if __name__ == "__main__":
    main()
