"""`pcssl visualize`: scenes and their features as pictures, in a window or in a browser."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcssl.commands.extract import add_reading_options, reading_options
from pcssl.commands.probe import ProbeJob
from pcssl.config import load_config
from pcssl.data import PreparedDataset, Scene, read_scene, write_ply
from pcssl.errors import UserError
from pcssl.evaluation import LinearProbe, load_model
from pcssl.evaluation.cache import BackboneFeatures, FeatureCache, data_keys
from pcssl.evaluation.pretrained import PretrainedModel
from pcssl.registry import did_you_mean
from pcssl.sparse import use_engine
from pcssl.training.trainer import pick_device
from pcssl.visualization import save_picture
from pcssl.visualization.colors import Classes
from pcssl.visualization.figure import draw_figure
from pcssl.visualization.masked import load_objective, mask_scene
from pcssl.visualization.state import NEEDS, Subject, ViewState, split_mode

_DESCRIPTION = """\
Show scenes and what features make of them, as a picture, a coloured PLY, in a window or in a browser.

  python tools/visualize.py scan.ply --features features.npz --mode input,pca,similarity --out picture.png
  python tools/visualize.py scan.ply --checkpoint runs/msm_rooms/checkpoint.pt --window
  python tools/visualize.py data/rooms/val/scene0048_00 --checkpoint X --probe configs/data/rooms.yaml --browser

A scan is any file that `pcssl extract` reads, or the folder of a prepared scene, which has labels. Modes:

  input        the scan's colours
  pca          the features' first three principal components as red, green, blue, the same for all scans
  similarity   how like the features are to those of the point --query; a click moves it
  clusters     k-means clusters of the features
  labels, predictions, errors
  views        the two augmented views of a training step: views0, views1
  masks        what Masked Scene Modeling hides from its student, in one draw (--seed)
  student      what the student sees of it
  targets      the teacher's features, a mode for every level: targets0, targets1, ...

A window and a browser have all modes that the input allows; M and N step through them.
"""

def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl visualize`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scans", nargs="+", type=Path, metavar="scan", help="a scan, or a prepared scene's folder")
    parser.add_argument("--mode", metavar="A,B", help="modes; a picture has a column for each (default: input,pca)")
    known = parser.add_argument_group("what is known of the scans")
    known.add_argument("--features", type=Path, nargs="+", metavar="NPZ", help="of `pcssl extract`, one a scan or their folder")
    known.add_argument("--checkpoint", help="file, folder or name of a model: computes what --features lacks")
    known.add_argument("--label", help="field of the scan's labels (default: segment20, or the only one)")
    known.add_argument("--predictions", type=Path, nargs="+", metavar="NPY", help="classes (N,), one file a scan")
    known.add_argument("--probe", metavar="YAML", help="predict by a linear probe on this labelled data; needs --checkpoint")
    known.add_argument("--query", metavar="I|x,y,z", help="the point of `similarity`, of the first scan (default: its middle)")
    known.add_argument("--clusters", type=int, default=12, metavar="K", help="for `clusters` (default 12)")
    known.add_argument("--seed", type=int, default=0, help="of what is hidden from the student (default 0)")
    shown = parser.add_argument_group("where to show them")
    shown.add_argument("--out", type=Path, metavar="FILE", help="picture.png, picture.jpg, or cloud.ply (of one mode)")
    shown.add_argument("--view", default="oblique", choices=("oblique", "top", "both"), help="of a picture (default oblique)")
    shown.add_argument("--width", type=int, default=1600, help="of a picture in pixels (default 1600)")
    shown.add_argument("--across", type=int, default=4, metavar="N", help="columns of a picture, which then goes on below (default 4)")
    shown.add_argument("--point-size", type=float, metavar="M", help="diameter in metres (default: what closes the surfaces)")
    shown.add_argument("--window", action="store_true", help="an Open3D window on this machine's display")
    shown.add_argument("--browser", action="store_true", help="a page for a browser, also a remote one")
    shown.add_argument("--port", type=int, default=8080, help="of --browser (default 8080)")
    shown.add_argument("--host", default="127.0.0.1", help="of --browser; 0.0.0.0 lets other machines in (default 127.0.0.1)")
    add_reading_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--engine", default="auto", help="auto, native, reference or spconv")


def run(args: argparse.Namespace) -> int:
    """Read, look up or compute, show."""
    _check(args)
    if args.window:  # before minutes of computing, not after
        from pcssl.visualization.window import check_display, load_open3d

        load_open3d()
        check_display()
    if args.browser:
        from pcssl.visualization.browser import check_port, load_viser

        load_viser()
        check_port(args.host, args.port)
    with use_engine(args.engine):
        state = make_state(args)
    if args.query:
        _ask(state, args.query)
    asked = args.mode.split(",") if args.mode else ["input", "pca"] if "pca" in state.modes else ["input"]
    modes = state.check_modes(asked)
    if args.out:
        _write(state, modes, args)
    if args.window or args.browser:
        state.use(modes[-1])
    if args.window:
        from pcssl.visualization.window import Window

        Window(state).run()
    if args.browser:
        from pcssl.visualization.browser import Browser

        Browser(state, args.host, args.port).run()
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be told to be wrong before anything is read."""
    if not (args.out or args.window or args.browser):
        raise UserError("say where to show it: --out picture.png, --out cloud.ply, --window or --browser")
    if args.window and args.browser:
        raise UserError("--window and --browser: choose one")
    if args.out and args.out.suffix.lower() not in (".png", ".jpg", ".ply"):
        raise UserError(f"--out {args.out}: must end in .png, .jpg or .ply")
    if args.out and args.out.suffix.lower() == ".ply" and len(args.scans) > 1:
        raise UserError(f"--out {args.out}: a PLY holds one scan; there are {len(args.scans)}")
    for mode in args.mode.split(",") if args.mode else ():
        if split_mode(mode)[0] not in NEEDS:
            raise UserError(f"no mode {mode!r}{did_you_mean(mode, NEEDS)}; known: {', '.join(NEEDS)}")
    if args.probe and not args.checkpoint:
        raise UserError("--probe needs --checkpoint: the probe is fitted on the model's features of other scenes")
    if not 100 <= args.width <= 10_000:
        raise UserError(f"--width {args.width}: must be from 100 to 10000 pixels")
    if not 1 <= args.across <= 20:
        raise UserError(f"--across {args.across}: must be from 1 to 20")
    if args.point_size is not None and not 0 < args.point_size <= 10:
        raise UserError(f"--point-size {args.point_size}: must be above 0 and at most 10 metres")
    if not 2 <= args.clusters <= 200:
        raise UserError(f"--clusters {args.clusters}: must be from 2 to 200")


# ---------------------------------------------------------------- what is known of the scans


def make_state(args: argparse.Namespace) -> ViewState:
    """Everything that the arguments give or let compute; features and masks only if a mode may want them."""
    subjects = [Subject(_read(scan, args)) for scan in args.scans]
    device = pick_device(args.device)
    asked = None if args.window or args.browser or not args.mode else set(args.mode.split(","))
    wanted = {need for mode in asked or NEEDS for need in NEEDS.get(split_mode(mode)[0], ((), ""))[0]}
    model = load_model(args.checkpoint, device) if args.checkpoint else None
    if args.features:
        for subject, path in zip(subjects, _one_each(args.features, args.scans, "--features", ".npz")):
            subject.features = read_features(path, subject.scene)
    elif model and wanted & {"features", "predictions"}:
        for subject in subjects:
            subject.features = _finite(model.extract(subject.scene).features, f"{args.checkpoint} on {subject.scene.name}")
    classes = _labels(subjects, args.label)
    if args.predictions:
        for subject, path in zip(subjects, _one_each(args.predictions, args.scans, "--predictions", ".npy")):
            subject.predictions = read_predictions(path, len(subject.scene))
    elif args.probe and "predictions" in wanted:
        classes, predict = fit_probe(model, args.probe, Path(args.checkpoint).parent / "features")
        for subject in subjects:
            subject.predictions = predict(subject.features)
    if args.checkpoint and "masked" in wanted:
        _mask(subjects, args, device, required=asked is not None)
    return ViewState(subjects, _covering(classes, subjects, args.label), args.clusters)


def _read(path: Path, args: argparse.Namespace) -> Scene:
    if path.is_dir() and (path / "coord.npy").exists():
        folder = path.resolve()
        data = PreparedDataset(folder.parent.parent, folder.parent.name)
        return data[data.names.index(folder.name)]
    if path.is_dir():
        raise UserError(f"{path}: neither a scan nor a prepared scene's folder, which holds coord.npy")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"pcssl visualize: warning: {message}", file=sys.stderr)
        return read_scene(path, **reading_options(args))


def _one_each(given: list[Path], scans: list[Path], flag: str, suffix: str) -> list[Path]:
    """A file for every scan: as given, or of its name in the folder that is given."""
    if len(given) == 1 and given[0].is_dir():
        return [given[0] / f"{scan.stem}{suffix}" for scan in scans]
    if len(given) != len(scans):
        raise UserError(f"{flag}: {len(given)} files for {len(scans)} scans; give one a scan, in the same order")
    return given


def read_features(path: Path, scene: Scene) -> Tensor:
    """(N, D) of a file of `pcssl extract`; UserError if they are of another scan or not finite."""
    arrays = _load(path)
    if not isinstance(arrays, dict) or "features" not in arrays:
        raise UserError(f"{path}: holds no 'features'; write it with `pcssl extract`")
    features, coord = arrays["features"], arrays.get("coord")
    if features.ndim != 2 or features.dtype.kind != "f":
        raise UserError(f"{path}: features are {features.shape} {features.dtype}; they must be (N, D) floating point")
    if len(features) != len(scene):
        raise UserError(f"{path}: {len(features)} features, but {scene.name} has {len(scene)} points; extract this scan's")
    if coord is not None and (coord.shape != (len(scene), 3) or np.abs(coord - scene.coord.numpy()).max() > 1e-3):
        raise UserError(f"{path}: its points lie elsewhere than those of {scene.name}; extract this scan's features")
    return _finite(torch.from_numpy(features.astype(np.float32)), str(path))


def _finite(features: Tensor, what: str) -> Tensor:
    if not bool(features.isfinite().all()):
        raise UserError(f"{what}: some features are NaN or infinite; the model has diverged")
    return features


def read_predictions(path: Path, points: int) -> Tensor:
    """(N,) int64 classes of a .npy file, or of "predictions" of an .npz; UserError if not one integer a point."""
    arrays = _load(path)
    values = arrays.get("predictions") if isinstance(arrays, dict) else arrays
    if values is None:
        raise UserError(f"{path}: holds no 'predictions'")
    if values.shape != (points,) or values.dtype.kind not in "iu":
        raise UserError(f"{path}: {values.shape} {values.dtype}; there must be one integer for each of the {points} points")
    return torch.from_numpy(values.astype(np.int64))


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        found = np.load(path)
        return found if isinstance(found, np.ndarray) else dict(found)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # numpy and zipfile have many
        raise UserError(f"{path}: cannot be read as NumPy's .npz or .npy; write it again") from error


def _labels(subjects: list[Subject], name: str | None) -> Classes | None:
    """Give every subject its labels, if all have them; the classes of a label set that is known."""
    there = set.intersection(*(set(subject.scene.labels) for subject in subjects))
    if name and name not in there:
        raise UserError(f"--label {name}: the scans have {', '.join(sorted(there)) or 'no labels'}")
    if not there:
        return None
    if not name and len(there) > 1 and "segment20" not in there:
        raise UserError(f"the scans have {', '.join(sorted(there))}; choose one with --label")
    name = name or ("segment20" if "segment20" in there else next(iter(there)))
    for subject in subjects:
        subject.labels = subject.scene.labels[name].long()
    return Classes.called(name, 1 + max(int(subject.labels.max()) for subject in subjects))


def _covering(classes: Classes | None, subjects: list[Subject], label: str | None) -> Classes | None:
    """The classes, checked to have a name for every number; made up for predictions of a scan without labels."""
    numbers = [int(x.max()) for s in subjects for x in (s.labels, s.predictions) if x is not None and len(x)]
    if not numbers:
        return classes
    classes = classes or Classes.called(label or "segment20", 1 + max(numbers))
    if max(numbers) >= len(classes.names):
        raise UserError(f"class {max(numbers)} has no name: there are {len(classes.names)}; choose other labels with --label")
    return classes


def fit_probe(model: PretrainedModel, data: str, cache: Path) -> tuple[Classes, Callable[[Tensor], Tensor]]:
    """A linear probe on the training scenes of a data file, as `pcssl probe` fits it: features (N, D) -> (N,)."""
    job = load_config(data, ProbeJob)
    source = job.dataset.build()
    if source.label is None:
        raise UserError(f"{data} names no labels to fit a probe on; set label and classes of its dataset")
    train, val = source.scenes(job.probe.train_split), source.scenes(job.probe.val_split)
    features = BackboneFeatures(model.point_features())
    keys = (data_keys(scenes, source.label, len(source.classes))[1] for scenes in (train, val))
    kept = FeatureCache(cache, features, *keys, job.probe.train_points)
    sample = kept.sample(train, source.label, lambda done, total: None)
    device = next(model.backbone.parameters()).device
    probe = LinearProbe.fit(
        sample.features, sample.labels, len(source.classes), rows=sample.rows(), weights=sample.weight, epochs=job.probe.epochs,
        device=device,
    )
    return Classes.of(source), probe


def _mask(subjects: list[Subject], args: argparse.Namespace, device: torch.device, required: bool) -> None:
    """Draw the masks; a checkpoint without the objective is refused only if they were asked for."""
    try:
        objective = load_objective(args.checkpoint).to(device)
    except UserError:
        if required:
            raise
        return
    for subject in subjects:
        subject.masked = mask_scene(objective, subject.scene, args.seed)


def _ask(state: ViewState, query: str) -> None:
    try:
        numbers = [float(part) for part in query.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 3 and all(map(np.isfinite, numbers)):
        state.ask_place([value - shift for value, shift in zip(numbers, state.subjects[0].scene.origin)])
    elif len(numbers) == 1 and numbers[0].is_integer():
        state.ask_row(int(numbers[0]))
    else:
        raise UserError(f"--query {query}: give a point's number, or a place x,y,z in metres")


# ---------------------------------------------------------------- files


def _write(state: ViewState, modes: list[str], args: argparse.Namespace) -> None:
    if args.out.suffix.lower() == ".ply":
        if len(modes) > 1:
            raise UserError(f"--out {args.out}: a PLY has the colours of one mode; --mode has {', '.join(modes)}")
        write_ply(args.out, replace(state.subjects[0].scene, color=state.colors(modes[0])[0]))
        print(f"cloud        {args.out}")
        return
    views = ("oblique", "top") if args.view == "both" else (args.view,)
    image = draw_figure(state, modes, views=views, width=args.width, columns=args.across, point_size=args.point_size)
    save_picture(args.out, image)
    print(f"picture      {args.out}")
