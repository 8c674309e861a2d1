"""The table and the plot of a benchmark's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

UNITS = {"flops": (1e12, "TFLOPs"), "bytes": (2**30, "GiB"), "seconds": (1.0, "s")}


def table(result: dict[str, Any]) -> str:
    """Markdown: ours beside the published recipe, then the other comparisons."""
    machine = result["machine"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['dtype']}: matmul "
        f"{machine['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, copy {machine['bytes_per_second'] / 1e9:,.1f} GB/s",
        "",
        "| what | ours | published recipe | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for size, settings in result.get("meta", {}).items():
        for name, found in settings.items():
            lines += compared(found, f"{size}, {found['prompts']} prompts, {name}")
    if "timed" in result:
        lines += compared(result["timed"], f"{result['timed']['size']}, {result['timed']['prompts']} prompts")
    for size, step in result.get("step", {}).items():
        lpo = step["lpo_sampling"] + step["lpo_scoring"]
        lines.append(f"| {size}: a step at K 4, LPO beside SPO | {lpo / 1e12:.2f} TFLOPs | "
                     f"{step['spo'] / 1e12:.2f} TFLOPs | SPO / LPO {step['ratio']:.2f} |")  # fmt: skip
    for size, training in result.get("reward_training", {}).items():
        both = training["encoding"] + training["training"]
        lines.append(f"| {size}: reward training on a picture, latents stored or encoded | "
                     f"{training['training'] / 1e12:.2f} TFLOPs | {both / 1e12:.2f} TFLOPs | "
                     f"throughput {training['throughput_ratio']:.2f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def compared(found: dict[str, Any], label: str) -> list[str]:
    return [
        f"| {label}: {unit}, {part} | {ours / scale:.3f} | {found['published'][kind][part] / scale:.3f} | "
        f"{found['ratio'][kind].get(part, 1):.3f} |"
        for kind, (scale, unit) in UNITS.items() if kind in found["ours"]
        for part, ours in found["ours"][kind].items()
    ]  # fmt: skip


def plot(result: dict[str, Any], path: Path) -> None:
    """How the work of an iteration grows, and the seconds of ours and the published recipe."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    growth = result.get("growth", {})
    figure, axes = plt.subplots(1, len(growth) + 1, figsize=(3.2 * (len(growth) + 1), 3), squeeze=False)
    for axis, (name, values) in zip(axes[0], growth.items(), strict=False):
        for part in ("rollout", "update"):
            axis.plot([float(v) for v in values], [f[part] / 1e12 for f in values.values()], marker="o", label=part)
        axis.set(title=name, ylabel="TFLOPs, SD1.5")
        axis.legend()
    for k, name in enumerate(("ours", "published")):
        seconds = result["timed"][name]["seconds"]
        axes[0][-1].bar(k, seconds["rollout"], color="C0", label="rollout" if k == 0 else None)
        axes[0][-1].bar(k, seconds["update"], bottom=seconds["rollout"], color="C1", label="update" if k == 0 else None)
    axes[0][-1].set(title=f"{result['timed']['size']}: seconds", xticks=[0, 1], xticklabels=["ours", "published"])
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
