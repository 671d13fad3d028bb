"""results.json as text, and two of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What must be equal for scores to be comparable, and how a reader would name it.
PROTOCOL = {
    "version": "version of the protocol", "train_split": "training split", "val_split": "scored split", "train_points": "sampled points a training scene",
    "val_points": "points a scene that nearest neighbours are scored on", "database": "size of the nearest-neighbour database",
    "epochs": "epochs of the linear probe", "instance_radius": "radius of instances", "size": "size of the images",
    "only_levels": "levels that features are read from", "lovasz": "Lovász loss of the linear probe",
}  # fmt: skip
_LATER = {"only_levels": None, "lovasz": False}  # what results mean that do not have these keys


# What a score holds first, and its name: segmentation of points, classification of images.
MEASURES = {"miou": "mIoU, %", "accuracy": "accuracy, %"}


def _measure(score: dict[str, Any]) -> str:
    return next(key for key in MEASURES if key in score)


def _title(results: dict[str, Any]) -> str:
    scores = [score for source in results.values() for score in source.values()]
    return MEASURES[_measure(scores[0])] if scores else ""


def _main_heads(results: dict[str, Any]) -> list[str]:
    """Those of any source, without the studies of few labels and of levels."""
    return list(dict.fromkeys(head for scores in results.values() for head in scores if "/" not in head))


def table(results: dict[str, Any], heads: list[str] | None = None) -> str:
    """mIoU or accuracy in percent, a row a source, mean and standard deviation over seeds."""
    heads = heads or _main_heads(results)
    width = max(len(source) for source in results) + 2
    wide = [max(16, len(head) + 2) for head in heads]
    lines = [f"{_title(results):{width}}" + "".join(f"{head:>{w}}" for head, w in zip(heads, wide))]
    for source, scores in results.items():
        lines.append(f"{source:{width}}" + "".join(f"{_cell(scores.get(head)):>{w}}" for head, w in zip(heads, wide)))
    return "\n".join(lines)


def _cell(score: dict[str, Any] | None, key: str | None = None) -> str:
    if score is None:
        return "-"
    return _number(score[key or _measure(score)])


def _number(score: dict[str, Any]) -> str:
    return f"{100 * score['mean']:.1f} +- {100 * score['std']:.1f}"


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Linear over supervised, and nearest neighbour over linear, of the trained features, where both are there."""
    trained = results["trained"]

    def miou(source: dict[str, Any], head: str) -> float:
        return source.get(head, {}).get("miou", {}).get("mean", 0.0)

    linear, found = miou(trained, "linear"), {}
    supervised = miou(results.get("supervised", {}), "supervised")
    if supervised and linear:
        found["linear / supervised"] = linear / supervised
    nearest = [head for head in trained if head.endswith("-nn")]
    if nearest and linear:
        found["best nearest neighbour / linear"] = max(miou(trained, head) for head in nearest) / linear
    return found


def unmeasured(results: dict[str, Any]) -> list[str]:
    """The rows of the protocol that a probe left out, and how to get them."""
    missing = []
    if "random weights" not in results:
        missing.append("the floors, random weights and input features (`probe.floors=true`)")
    if "supervised" not in results:
        missing.append("the ceiling, the same network trained with labels (`supervised` in --heads)")
    return missing


def markdown(found: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """The whole of results.json as a page. pictures: names of those in pictures/ beside it."""
    results, data = found["results"], found["data"]
    every = list(dict.fromkeys(head for scores in results.values() for head in scores))
    parts = [
        "# How good the features are",
        f"{data['root']}: {data['train_scenes']} scenes to fit on, {data['val_scenes']} to score on, "
        f"{len(data['classes'])} classes of `{data['label']}`. Checkpoint: {_described(found)}. mIoU in percent, "
        f"mean and standard deviation over {found['protocol']['seeds']} seeds.",
        *(f"**{warning}**" for warning in found.get("warnings", [])),
        _table(["", *_main_heads(results)], results, _main_heads(results)),
    ]
    if found_ratios := ratios(results):
        parts.append("\n".join(f"{name}: {value:.2f}" for name, value in found_ratios.items()))
    parts += [f"Not measured: {what}." for what in unmeasured(results)]
    if "features.png" in pictures:
        parts += ["## Scenes", "![Input, labels, prediction and features as colours](pictures/features.png)"]
    for title, wanted in (("Few labels", (" % of scenes", " points a scene")), ("Levels", (" alone", "without level"))):
        heads = [h for h in every if "/" in h and any(w in h for w in wanted)]
        if heads:
            parts += [f"## {title}", _turned(heads, results)]
        if title == "Levels" and "levels.png" in pictures:
            parts.append("![Levels alone and left out](pictures/levels.png)")
    if "instances" in found:
        parts += ["## Instances", "Average precision in percent, as ScanNet's benchmark defines it.", instance_table(found["instances"])]
    with_classes = {s: heads[h]["iou"] for s, heads in results.items() for h in ("linear", "supervised", "finetune") if h in heads}
    if with_classes:
        title = "IoU in percent: of the linear probe, and of networks trained with labels."
        parts += ["## Classes", title, _classes(data["classes"], with_classes)]
        if "classes.png" in pictures:
            parts.append("![IoU per class](pictures/classes.png)")
    parts += ["## Protocol", "\n".join(f"- {key}: {value}" for key, value in found["protocol"].items())]
    parts.append("\n".join(f"- {key}: {value}" for key, value in found.get("machine", {}).items()))
    return "\n\n".join(parts) + "\n"


def image_markdown(found: dict[str, Any]) -> str:
    """The whole of results.json of images as a page."""
    results, data = found["results"], found["data"]
    every = list(dict.fromkeys(head for scores in results.values() for head in scores))
    parts = [
        "# How good the features are",
        f"{data['root']}: {data['train_images']} images to fit on, {data['val_images']} to score on, {len(data['classes'])} "
        f"classes. Checkpoint: {_described(found)}. Accuracy in percent, mean and standard deviation over runs.",
        *(f"**{warning}**" for warning in found.get("warnings", [])),
        _turned(every, results),
    ]
    if "layers" in found:
        parts += ["## Layers of the head", "Below (pre) to above (post), at equal width.", layer_table(found["layers"])]
    if "robustness" in found:
        parts += ["## Corrupted images", robustness_table(found["robustness"])]
        for source, rates in found["robustness"].items():
            parts += [f"## Classes: {source}", _classwise(data["classes"], rates)]
    parts += ["## Protocol", "\n".join(f"- {key}: {value}" for key, value in found["protocol"].items())]
    parts.append("\n".join(f"- {key}: {value}" for key, value in found.get("machine", {}).items()))
    return "\n\n".join(parts) + "\n"


def layer_table(found: dict[str, dict[str, float]]) -> str:
    """Of `evaluation.layers.probe_layers`: accuracies in percent, the rest as it is."""
    rows = [
        [layer, f"{100 * s['ridge']:.1f}", f"{100 * s['10-nn']:.1f}", f"{s['rank']:.1f}", f"{s['inequality']:.2f}"]
        for layer, s in found.items()
    ]
    return _grid(["layer", "ridge, %", "10-nn, %", "effective rank", "inequality"], rows)


def robustness_table(found: dict[str, dict[str, Any]]) -> str:
    """Of `evaluation.images.robustness`: percent, and by how much the best class is above the worst."""
    changes = list(next(iter(found.values())))
    rows = [[source, *(f"{100 * r[c]['overall']:.1f} (gap {100 * r[c]['gap']:.1f})" for c in changes)] for source, r in found.items()]
    return _grid(["", *changes], rows)


def _classwise(classes: list[str], rates: dict[str, dict[str, Any]]) -> str:
    """A row a class that was scored, and by how much the best is above the worst: percent."""
    scored = next(iter(rates.values()))["groups"]
    rows = [[name, *(f"{100 * r['groups'][name]:.1f}" for r in rates.values())] for name in classes if name in scored]
    rows.append(["gap", *(f"{100 * r['gap']:.1f}" for r in rates.values())])
    rows.append(["disparate", *("yes" if r["disparate"] else "no" for r in rates.values())])
    return _grid(["", *rates], rows)


def _grid(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(r) + " |" for r in rows)])


def _described(found: dict[str, Any]) -> str:
    card = found.get("checkpoint", {})
    known = [f"{key} {card[key]}" for key in ("path", "dataset", "split", "step") if key in card]
    return ", ".join(known) or "unknown"


def _table(header: list[str], results: dict[str, Any], heads: list[str]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for source, scores in results.items():
        lines.append("| " + " | ".join([source, *(_cell(scores.get(head)) for head in heads)]) + " |")
    return "\n".join(lines)


def instance_table(found: dict[str, Any]) -> str:
    lines = ["| | AP | AP50 | AP25 |", "|---|---|---|---|"]
    lines += [f"| {source} | {_cell(s, 'ap')} | {_cell(s, 'ap50')} | {_cell(s, 'ap25')} |" for source, s in found.items()]
    return "\n".join(lines)


def _turned(heads: list[str], results: dict[str, Any]) -> str:
    """A row a head, for many heads."""
    sources = [source for source, scores in results.items() if any(head in scores for head in heads)]
    lines = ["| | " + " | ".join(sources) + " |", "|" + "---|" * (len(sources) + 1)]
    for head in heads:
        lines.append("| " + " | ".join([head, *(_cell(results[source].get(head)) for source in sources)]) + " |")
    return "\n".join(lines)


def _classes(classes: list[str], columns: dict[str, list[float | None]]) -> str:
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for i, name in enumerate(classes):
        cells = ("-" if iou[i] is None else f"{100 * iou[i]:.1f}" for iou in columns.values())
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Why the scores of two results cannot be compared: a line each, none when they can."""
    found = []
    for key, what in PROTOCOL.items():
        if key == "instance_radius" and not ("instances" in a and "instances" in b):
            continue
        mine, theirs = (r["protocol"].get(key, _LATER.get(key)) for r in (a, b))
        if mine != theirs:
            found.append(f"{what}: {mine} against {theirs}")
    for key, what in (("label", "label"), ("classes", "classes"), ("fingerprint", "scenes or images, or their labels,")):
        if a["data"].get(key) != b["data"].get(key):
            found.append(f"{what} differ")
    return found


def cautions(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What a reader of two comparable results should know: a line each."""
    found = []
    if (seeds := [r["protocol"].get("seeds") for r in (a, b)]) and seeds[0] != seeds[1]:
        found.append(f"means over {seeds[0]} against {seeds[1]} seeds")
    budgets = [r.get("labelled_training") for r in (a, b)]
    if all(budgets) and budgets[0] != budgets[1]:
        differ = [key for key in budgets[0] if budgets[0][key] != budgets[1].get(key)]
        what = ", ".join(f"{key} {budgets[0][key]} against {budgets[1].get(key)}" for key in differ)
        found.append(f"networks were trained with labels under other budgets: {what}")
    found += [f"{name} result: {warning}" for name, r in (("first", a), ("second", b)) for warning in r.get("warnings", [])]
    return found


def compared(a: dict[str, Any], b: dict[str, Any], names: tuple[str, str]) -> str:
    """Every score that both have, and by how much the second is above the first."""
    mine, theirs = _flat(a), _flat(b)
    both = [title for title in mine if title in theirs]
    width = max(24, *(len(title) + 2 for title in (*both, "")))
    lines = [f"{_title(a['results']):{width}}{names[0]:>18}{names[1]:>18}{'difference':>14}"]
    for title in both:
        gap = 100 * (theirs[title]["mean"] - mine[title]["mean"])
        lines.append(f"{title:{width}}{_number(mine[title]):>18}{_number(theirs[title]):>18}{gap:>+14.1f}")
    return "\n".join(lines) if both else "no score is in both"


def _flat(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Title -> the main number of every score."""
    out = {}
    for source, scores in found["results"].items():
        for head, score in scores.items():
            key = _measure(score)
            out[f"{source}, {head}" if key == "miou" else f"{source}, {head} ({key})"] = score[key]
    for source, score in found.get("instances", {}).items():
        out |= {f"{source}, instances {key.upper()}": score[key] for key in ("ap", "ap50", "ap25")}
    return out
