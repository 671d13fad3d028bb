"""The command line: which command runs, and what the user sees when something is wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pcssl import cli
from pcssl.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def command(monkeypatch):
    """Installs `run` as the command `fake`."""

    def install(run):
        module = types.ModuleType("fake_command")
        module.configure = lambda parser: parser.add_argument("words", nargs="*")
        module.run = run
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", ("fake_command", "does nothing"))

    return install


def raiser(error):
    def run(args):
        raise error

    return run


def test_arguments_reach_the_command_and_its_status_comes_back(command):
    seen = []
    command(lambda args: seen.append(args.words) or 3)
    assert cli.main(["fake", "a", "b=1"]) == 3
    assert seen == [["a", "b=1"]]


def test_settings_may_stand_anywhere(command):
    seen = []
    command(lambda args: seen.append((args.overrides, args.resume)) or 0)

    def configure(parser):
        parser.add_argument("config")
        parser.add_argument("overrides", nargs="*")
        parser.add_argument("--resume", action="store_true")

    sys.modules["fake_command"].configure = configure
    assert cli.main(["fake", "a.yaml", "x=1", "--resume", "y=2"]) == 0 and cli.main(["fake", "a.yaml", "--resume", "y=2"]) == 0
    assert seen == [(["x=1", "y=2"], True), (["y=2"], True)]
    assert cli.main(["fake", "a.yaml", "--resume", "b.yaml"]) == 2 and cli.main(["fake", "a.yaml", "--other=3"]) == 2


def test_help_lists_every_command_and_imports_none(capsys):
    before = set(sys.modules)
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, summary) in cli.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in shown.splitlines())
    assert not {m for m in set(sys.modules) - before if m.startswith("pcssl.commands.")}


def test_help_needs_no_torch():
    code = "import sys; from pcssl.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_help_of_a_command(command, capsys):
    command(lambda args: 0)
    assert cli.main(["fake", "--help"]) == 0
    assert "usage: pcssl fake" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pcssl ")


def test_no_command_shows_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_unknown_command_names_the_near_one(capsys):
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian' (did you mean 'train'?)" in capsys.readouterr().err


def test_bad_argument_of_a_command(command, capsys):
    command(lambda args: 0)
    assert cli.main(["fake", "--nonsense"]) == 2
    assert "pcssl fake: error:" in capsys.readouterr().err


class Refused(UserError):
    exit_code = 7


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("x.yaml: lr: missing"), 2, "pcssl fake: error: x.yaml: lr: missing\n"),
        (Refused("no"), 7, "pcssl fake: error: no\n"),
        (KeyboardInterrupt(), 130, "pcssl fake: stopped\n"),
        (MemoryError(), 1, "pcssl fake: error: out of memory\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/run/last.pt"),
            1,
            "pcssl fake: error: no space left on the disk for /data/run/last.pt; free some and run again\n",
        ),
        (
            OSError(errno.EFBIG, "File too large", "/data/features.npy"),
            1,
            "pcssl fake: error: the file /data/features.npy is larger than this system or `ulimit -f` allows\n",
        ),
    ],
)
def test_mendable_errors_are_one_line(command, capsys, error, status, said):
    command(raiser(error))
    assert cli.main(["fake"]) == status
    assert capsys.readouterr().err == said


def test_debug_shows_the_traceback(command):
    command(raiser(UserError("x")))
    with pytest.raises(UserError):
        cli.main(["--debug", "fake"])


@pytest.mark.parametrize("error", [ValueError("bug"), PermissionError(errno.EACCES, "denied"), BrokenPipeError()])
def test_other_errors_keep_their_traceback(command, error):
    command(raiser(error))  # stdout is fine: this broken pipe is another one
    with pytest.raises(type(error)):
        cli.main(["fake"])


@pytest.mark.parametrize("lines", [1, 100000])
def test_closed_output_is_quiet(tmp_path, lines):
    script = tmp_path / "many.py"
    script.write_text(
        "import sys, types, time\n"
        "from pcssl import cli\n"
        "m = types.ModuleType('fake_command')\n"
        "m.configure = lambda parser: None\n"
        "def run(args):\n"
        "    sys.stdin.read()\n"  # until the reader of our output is gone
        f"    for i in range({lines}): print('x' * 50)\n"
        "    return 0\n"
        "m.run = run\n"
        "sys.modules['fake_command'] = m\n"
        "cli.COMMANDS['fake'] = ('fake_command', '')\n"
        "sys.exit(cli.main(['fake']))\n"
    )
    pipe = subprocess.PIPE
    code = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(script)!r}, run_name='__main__')"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # the last flush is the hard part
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_python_m_pcssl():
    done = subprocess.run([sys.executable, "-m", "pcssl", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout


@pytest.mark.parametrize("tool", ["train", "extract", "probe"])
def test_tools_say_how_to_install(tool):
    # -S and -I: neither site-packages nor the working directory, so pcssl cannot be found.
    script = ROOT / "tools" / f"{tool}.py"
    done = subprocess.run([sys.executable, "-I", "-S", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "pip install -e ." in done.stderr
