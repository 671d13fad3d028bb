"""`pcssl doctor`: what it finds, what it says of it, and that nothing broken breaks it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pcssl.cli import main
from pcssl.commands.doctor import covers, cuda_architectures, examine, report
from pcssl.sparse import engine as engines
from pcssl.sparse import native

ROOT = Path(__file__).parents[1]


def test_it_says_what_is_here(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"torch             {torch.__version__}" in said and f"Python            {sys.version.split()[0]}" in said
    assert f"auto takes        {engines.best_engine()}" in said and "engine reference  can run" in said
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch"]["version"] == torch.__version__ and found["auto"]["engine"] == engines.best_engine()
    assert set(found["engines"]) == {"native", "reference", "spconv"}
    assert len(found["gpus"]) == torch.cuda.device_count()


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled operators are not built")
def test_it_says_what_is_compiled():
    before = native.current_cpu()
    found = examine()["native"]
    assert found["library"] == str(native.LIBRARY) and found["threads"] == torch.get_num_threads()
    assert found["cpu"] == before == native.current_cpu() and "portable" in found["cpus"]


def looked_at(**changes):
    """Findings on a machine with everything, but for the changes."""
    found = {
        "pcssl": {"version": "0.1.0", "path": "/site-packages/pcssl"},
        "python": {"version": "3.11.7", "executable": "/usr/bin/python"},
        "torch": {"version": "2.13.0", "cuda": "13.0"},
        "gpus": [{"name": "H100", "capability": "9.0"}],
        "engines": {"native": None, "spconv": None, "reference": None},
        "native": {
            "library": "/site-packages/pcssl/pcssl_native.so", "cpu": "avx2", "cpus": ["avx2", "portable"],
            "threads": 8, "cuda_architectures": "80,86,89,90",
        },
        "spconv": {"name": "spconv-cu120", "version": "2.3.6"},
        "torch_scatter": {"name": "torch_scatter", "version": "2.1.2"},
        "open3d": None,
        "viser": None,
    } | changes  # fmt: skip
    return found


@pytest.fixture
def doctor(monkeypatch):
    """The report on a machine as `looked_at` describes it."""

    def tell(**changes):
        found = looked_at(**changes)
        for name in ("pcssl", "torch", "gpus", "engines", "native"):
            monkeypatch.setattr(f"pcssl.commands.doctor._{name}", lambda name=name: found[name])
        monkeypatch.setattr("pcssl.commands.doctor._package", lambda name: found[name])
        examined = examine()
        assert json.loads(json.dumps(examined)) == examined
        return report(examined)

    return tell


def test_with_everything_there_is_nothing_to_do(doctor):
    said = doctor()
    assert "GPU               H100, capability 9.0, for which the native engine is compiled" in said
    assert "native CUDA       architectures 80,86,89,90" in said and "to get more" not in said
    assert "native CPU        avx2, of avx2, portable; OpenMP threads: 8" in said


def test_advice(doctor):
    said = doctor(gpus=[{"name": "B200", "capability": "10.0"}])
    assert "B200, capability 10.0, for which the native engine is not compiled" in said
    assert "compiled for other GPUs: run `pip install` again on this machine" in said
    said = doctor(native={**looked_at()["native"], "cuda_architectures": None})
    assert "not built: no nvcc at build time" in said and "install the CUDA toolkit (nvcc)" in said
    said = doctor(native={**looked_at()["native"], "cuda_architectures": None}, gpus=[])
    assert "none that torch can see" in said and "nvcc)" not in said
    said = doctor(torch_scatter=None)
    assert "pip install --no-build-isolation torch-scatter" in said
    said = doctor(engines={"native": "it is not built", "spconv": "No module named 'spconv'", "reference": None})
    assert "auto takes        reference  (no native: it is not built)" in said
    assert engines.REMEDIES["native"] in said and engines.REMEDIES["spconv"] in said


def test_what_is_broken_is_named(doctor, monkeypatch):
    def broken(*_):
        raise OSError("libcuda.so: no version information")

    for part, row in (("_gpus", "GPU"), ("_native", "native"), ("_engines", "engines"), ("_torch", "torch")):
        with monkeypatch.context() as patch:
            said = doctor()
            patch.setattr(f"pcssl.commands.doctor.{part}", broken)
            said = report(examine())
            assert f"{row:18}broken: libcuda.so: no version information" in said
    monkeypatch.setattr("pcssl.commands.doctor._package", broken)
    assert "spconv            broken: libcuda.so" in report(examine())


def test_a_torch_that_does_not_import_is_told(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pcssl.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "torch             broken: libtorch_cpu.so: cannot open" in done.stdout
    assert 'torch does not work: run `pip install "torch>=2.11,<2.14"`' in done.stdout


@pytest.mark.parametrize(
    "capability,covered",
    [("8.0", True), ("8.6", True), ("8.7", True), ("7.5", False), ("9.0", True), ("10.0", True), ("10.3", False), ("12.0", False)],
)
def test_gpus_that_are_covered(capability, covered):
    assert covers("80,86,90,100a", capability) == covered
    assert not covers(None, capability)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
@pytest.mark.parametrize(
    "source,architectures",
    [
        ('const char *pcssl_cuda_architectures(void) { return "80,90"; }', "80,90"),
        ('const char *pcssl_cuda_architectures(void) { return ""; }', None),
        ("int pcssl_other;", None),
    ],
)
def test_the_library_is_asked_for_its_architectures(tmp_path, source, architectures):
    library = tmp_path / "library.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source, text=True, check=True)
    assert cuda_architectures(library) == architectures
