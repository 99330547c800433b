"""What attacks find against how large the leak is."""

from typing import Any

from matplotlib.figure import Figure as Picture

from launch.leaks.cells import Cell, Figure


def curves(found: list[tuple[Cell, dict[str, Any]]], attacks: list[str]) -> Picture:
    """A panel a figure of an attack, with its interval, against the oracle: a curve over the lengths of training.

    Args:
        found: each benchmark, and its `benchmark.json`.
        attacks: which of them; every benchmark has them all, with the same figures.
    """
    panels = [(name, column) for name in attacks for column in found[0][1]["attacks"][name]["figures"]]
    out = Picture(figsize=(1 + 4.5 * len(panels), 4.5), layout="constrained")
    for ax, (name, column) in zip(out.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        series: dict[str, list[tuple[float, Figure]]] = {}
        for cell, known in sorted(found, key=lambda each: each[0].config.num_steps):
            fields = {"images": cell.images, **cell.overrides, "seed": cell.config.seed}
            label = ", ".join(f"{field} {value}" for field, value in fields.items())
            series.setdefault(label, []).append((known["oracle"]["value"], known["attacks"][name]["figures"][column]))
        for k, (label, points) in enumerate(series.items()):
            x, y = [oracle for oracle, _ in points], [figure["value"] for _, figure in points]
            ax.plot(x, y, "o-", color=f"C{k % 10}", label=label)
            for oracle, figure in points:
                low, high = figure["interval"]
                if low is not None and high is not None:
                    ax.plot([oracle, oracle], [low, high], color=f"C{k % 10}", alpha=0.4)
        ax.axline((0.5, 0.5), slope=1, color="black", linewidth=0.8)  # an attack that knows as much as the generator
        ax.set_xlabel("oracle")
        ax.set_ylabel(f"{name}, {column}" if column else name, parse_math=False)
        ax.grid(alpha=0.3)
        for text in ax.legend(fontsize="small").get_texts():
            text.set_parse_math(False)
    return out
