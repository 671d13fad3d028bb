"""What `pip install` builds where there is a C++ compiler and where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [None, "/bin/false", "/no/such/compiler"])
def test_a_wheel_holds_the_compiled_operators_if_there_is_a_compiler(tmp_path, compiler):
    pytest.importorskip("scikit_build_core", reason="needs the build requirements of pyproject.toml: make install")
    if compiler is None and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler here")
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | ({"CXX": compiler} if compiler else {})
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("pcssl-*-py3-none-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert ("pcssl/pcssl_native.so" in names) == (compiler is None)
    assert {"pcssl/sparse/native.py", "pcssl/sparse/spconv.py", "pcssl/commands/doctor.py"} <= set(names)
    assert not [name for name in names if name.startswith(("csrc/", "tests/"))]
