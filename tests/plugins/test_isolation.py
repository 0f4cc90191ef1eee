"""What a plugin does to the process while it is imported reaches neither the user nor others."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import locale
import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import click
import numpy
import pluggy
import pytest
import torch

import trunkline.contracts
from trunkline.errors import Interrupted
from trunkline.plugins import isolation, load_plugins, unfinished_imports
from trunkline.plugins.isolation import ImportMarker

AddPlugin = Callable[..., Path]


def run_python(
    code: str, site: Path, *, domains: str = "farm", timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that sees the plugins of ``site``."""
    path = os.pathsep.join((str(site), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": path, "TRUNKLINE_LOAD_PLUGINS": domains}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_whatever_is_written_at_import_stays_off_stdout(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin(
        "farm",
        "import os, sys\nprint('one')\nsys.__stdout__.write('two\\n')\n"
        "os.write(1, b'three\\n')\nos.system('echo four')\n",
    )
    code = "from trunkline.plugins import load_plugins\nprint('a')\nload_plugins()\nprint('b')"
    done = run_python(code, site)
    assert done.stdout == "a\nb\n"
    assert sorted(done.stderr.split()) == ["four", "one", "three", "two"]


CHANGES = {
    "the working folder": "import os\nos.chdir('/')",
    "the handler of SIGINT": "import signal\nsignal.signal(signal.SIGINT, lambda *_: None)",
    "the handler of SIGUSR1": "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "the locale": "import locale\nlocale.setlocale(locale.LC_ALL, 'C.UTF-8')",
    "a standard stream": "import sys, io\nsys.stdout = io.StringIO()",
    "sys.excepthook": "import sys\nsys.excepthook = print",
    "the recursion limit": "import sys\nsys.setrecursionlimit(sys.getrecursionlimit() + 100)",
    "folders from sys.path": "import sys\nsys.path.clear()",
    "the file mode mask": "import os\nos.umask(0o777)",
    "logging": "import logging\nlogging.disable()",
    "warnings into errors": "import warnings\nwarnings.simplefilter('error')",
    "variables that Trunkline reads": "import os\ndel os.environ['TRUNKLINE_WORKSPACE']",
    "the defaults of torch": "import torch\ntorch.set_default_dtype(torch.float64)",
    "numpy's handling of errors": "import numpy\nnumpy.seterr(all='raise')",
    "a timer that sends a signal": "import signal\nsignal.alarm(600)",
    "a timer that sends": "import signal\nsignal.setitimer(signal.ITIMER_PROF, 600)",
    "the signals that are blocked": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
    ),
    "limits of the process": (
        "import resource as r\nr.setrlimit(r.RLIMIT_NOFILE, (30, r.getrlimit(r.RLIMIT_NOFILE)[1]))"
    ),
    "whether garbage is collected": "import gc\ngc.disable()",
    "the trace function of threads": "import threading\nthreading.settrace(lambda *_: 1 / 0)",
    "the profile function of threads": "import threading\nthreading.setprofile(lambda *_: None)",
    "how often threads take turns": "import sys\nsys.setswitchinterval(9)",
    "the time limit of sockets": "import socket\nsocket.setdefaulttimeout(0.001)",
    "the stack size of threads": "import threading\nthreading.stack_size(1 << 20)",
    "the trace function,": "import sys\nsys.settrace(lambda *_: None)",
    "the profile function,": "import sys\nsys.setprofile(lambda *_: None)",
    "the limit of digits in a number": "import sys\nsys.set_int_max_str_digits(700)",
    "the limit of a field in CSV": "import csv\ncsv.field_size_limit(9)",
    "the processors that it may use": (
        "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    ),
    "replaces json.dumps": "import json\njson.dumps = lambda value, **_: '{}'",
    "replaces json.encoder.JSONEncoder.default": (
        "import json\njson.JSONEncoder.default = lambda self, value: str(value)"
    ),
    "replaces click.utils.echo": "import click.utils\nclick.utils.echo = lambda *_, **__: None",
    "replaces methods of sys.stderr": "import sys\nsys.stderr.write = lambda text: 1 / 0",
    "replaces pathlib.Path.read_text": "import pathlib\npathlib.Path.read_text = lambda *_: ''",
    "replaces re.compile": "import re\nre.compile = None",
    "replaces hashlib.sha256": "import hashlib\nhashlib.sha256 = hashlib.md5",
    "replaces subprocess.Popen": "import subprocess\nsubprocess.Popen = None",
    "replaces shutil.rmtree": "import shutil\nshutil.rmtree = print",
    "replaces builtins.isinstance": "import builtins\nbuiltins.isinstance = lambda *_: True",
    "replaces os.getcwd": "import os\nos.getcwd = lambda: 1 / 0",
    "replaces threading.excepthook": "import threading\nthreading.excepthook = None",
    "removes imported modules": "import sys\ndel sys.modules['json'], sys.modules['pluggy']",
    "blocks some": "import sys\nsys.modules['no_such_module'] = sys.modules['torch'] = None",
    "removes imported modules or": (
        "import sys\ndel sys.modules['trunkline.contracts']\nimport trunkline.contracts"
    ),
    "finders from sys.meta_path": "import sys\nsys.meta_path.clear()",
    "removes folders from sys.path": "import sys\nsys.path = None",
    "entries from sys.path_hooks": "import sys\nsys.path_hooks.clear()",
    "puts entries first on sys.path,": "import sys\nsys.path.insert(0, '/vendored')",
    "puts entries first on sys.meta_path,": (
        "import sys\nclass Finder:\n    def find_spec(*_):\n        return None\n"
        "sys.meta_path.insert(0, Finder)"
    ),
    "replaces sys.modules": "import sys\nsys.modules = dict(sys.modules)",
    "replaces os.environ": "import os\nos.environ = dict(os.environ)",
    "replaces warnings.filters": "import warnings\nwarnings.filters = None",
    "replaces locale.setlocale": "import locale\nlocale.setlocale = None",
    "replaces logging._logRecordFactory": (
        "import logging\nlogging.setLogRecordFactory(logging.LogRecord.__new__)"
    ),
    "replaces trunkline.contracts.Row": "import trunkline.contracts as one\none.Row = None",
    "replaces trunkline.contracts.Row.__eq__": (
        "import trunkline.contracts as one\none.Row.__eq__ = lambda *_: True"
    ),
    "replaces pluggy._manager.PluginManager.register": (
        "import pluggy\npluggy.PluginManager.register = None"
    ),
    "replaces importlib.metadata.EntryPoint.load": (
        "from importlib import metadata\nmetadata.EntryPoint.load = None"
    ),
}
NOT_LOADED = ("replaces builtins.isinstance", "replaces pluggy._manager.PluginManager.register")
"""What the plugin itself does not survive."""


@pytest.mark.parametrize("ending", ["", "\nraise ValueError"], ids=["loaded", "failed"])
@pytest.mark.parametrize("subject", CHANGES)
def test_state_that_an_import_changes_is_restored_and_noted(
    subject: str, ending: str, add_plugin: AddPlugin
) -> None:
    before = process_state()
    add_plugin("farm", CHANGES[subject] + ending)
    plugin = load_plugins().plugin("farm")
    assert process_state() == before
    (note,) = plugin.notes
    assert subject in note
    assert plugin.status == ("failed" if ending or subject in NOT_LOADED else "loaded")


def process_state() -> tuple[object, ...]:
    return (
        os.getcwd(),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGUSR1),
        locale.setlocale(locale.LC_ALL),
        sys.stdout,
        sys.excepthook,
        sys.getrecursionlimit(),
        os.umask(os.umask(0o22)),
        logging.root.manager.disable,
        [one for one in warnings.filters if one[0] == "error"],
        os.environ["TRUNKLINE_WORKSPACE"],
        torch.get_default_dtype(),
        numpy.geterr(),
        (signal.getitimer(signal.ITIMER_REAL), signal.getitimer(signal.ITIMER_PROF)),
        (signal.pthread_sigmask(signal.SIG_BLOCK, []), resource.getrlimit(resource.RLIMIT_NOFILE)),
        (gc.isenabled(), threading.gettrace(), threading.getprofile(), sys.getswitchinterval()),
        socket.getdefaulttimeout(),
        (threading.stack_size(), sys.gettrace(), sys.getprofile(), sys.get_int_max_str_digits()),
        (csv.field_size_limit(), os.sched_getaffinity(0)),
        (json.dumps, isinstance, threading.excepthook),
        (json.JSONEncoder.default, Path.read_text, re.compile, hashlib.sha256),
        (subprocess.Popen, shutil.rmtree, click.utils.echo),
        "write" in vars(sys.stderr),
        [sys.modules.get(name) for name in ("json", "pluggy", "torch", "no_such_module")],
        (sys.modules["trunkline.contracts"], trunkline.contracts),
        [one for one in sys.meta_path if getattr(one, "__name__", "") != "Finder"],
        ([one for one in sys.path if one != "/vendored"], sys.path[0], sys.meta_path[0]),
        (id(sys.path), id(sys.modules), id(os.environ), list(sys.path_hooks)),
        (logging.getLogRecordFactory(), locale.setlocale, metadata.EntryPoint.load),
        (trunkline.contracts.Row, trunkline.contracts.Row.__eq__, pluggy.PluginManager.register),
    )


@pytest.mark.parametrize(
    "code", ["sys.stdout.close()", "sys.stderr.close()", "sys.stderr.detach()", "os.close(2)"]
)
def test_stream_that_a_plugin_closes_is_opened_again(
    code: str, add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", f"import os, sys\n{code}")
    program = (
        "import sys\nfrom trunkline.plugins import load_plugins\n"
        "print(*load_plugins().plugin('farm').notes)\nprint('a warning', file=sys.stderr)"
    )
    done = run_python(program, site)
    assert "which was opened again" in done.stdout
    assert done.stderr.endswith("a warning\n")
    assert done.returncode == 0


CLOSING = {
    "a range": "os.closerange(3, 1000)",
    "one by one": "for one in range(3, 100):\n    os.close(one)",
    "in place of others": "for one in range(3, 100):\n    os.dup2(1, one)",
    "and ignores errors": "for n in range(3, 99):\n    try: os.close(n)\n    except OSError: pass",
}


@pytest.mark.parametrize("code", CLOSING.values(), ids=CLOSING)
def test_files_that_a_plugin_did_not_open_stay_open(
    code: str, add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", f"import os\n{code}")
    program = (
        "from trunkline.plugins import load_plugins\n"
        "with open('kept.txt', 'w+') as file:\n"
        "    plugin = load_plugins().plugin('farm')\n"
        "    file.write('kept')\n"
        "print(open('kept.txt').read(), plugin.status, plugin.reason)"
    )
    done = run_python(f"import os\nos.chdir({str(site)!r})\n{program}", site)
    if "except" in code:
        assert done.stdout == "kept loaded None\n"
    else:
        assert done.stdout.startswith("kept failed importing module_of_fake_farm raises")
        assert "would close files that it did not open" in done.stdout


def test_encoding_of_stdout_that_a_plugin_changes_is_restored(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", "import sys\nsys.__stdout__.reconfigure(encoding='ascii', errors='ignore')")
    code = (
        "from trunkline.plugins import load_plugins\nplugin = load_plugins().plugin('farm')\n"
        "print('é', *plugin.notes)"
    )
    note = "importing it changes the encoding of sys.stdout, which was restored"
    assert run_python(code, site).stdout == f"é {note}\n"


def test_plugin_may_close_its_own_files(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin(
        "farm",
        "import os, subprocess, sys\none, two = os.pipe()\nos.dup2(one, two)\nos.close(one)\n"
        "os.closerange(two, two + 1)\nsubprocess.run([sys.executable, '-c', ''], check=True)\n",
    )
    code = "from trunkline.plugins import load_plugins\nload_plugins(strict=True)"
    assert run_python(code, site).returncode == 0


def test_plugin_that_lowers_a_limit_for_good_is_set_aside(
    add_plugin: AddPlugin, site: Path
) -> None:
    """Only a process with a special right may raise a hard limit again."""
    add_plugin("farm", "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))")
    program = (
        "import resource\nbefore = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "from trunkline.plugins import load_plugins\nplugin = load_plugins().plugin('farm')\n"
        "print(before == resource.getrlimit(resource.RLIMIT_NOFILE), plugin.reason, *plugin.notes)"
    )
    restored, _, text = run_python(program, site).stdout.partition(" ")
    if restored == "True":
        assert "limits of the process, which was restored" in text
    else:
        assert "lowers the hard limit RLIMIT_NOFILE of the process from" in text
        assert "to 99, which can't be undone" in text


def test_module_beside_a_plugin_takes_the_place_of_no_other(
    add_plugin: AddPlugin, site: Path
) -> None:
    vendored = site / "vendored"
    vendored.mkdir()
    (vendored / "statistics.py").write_text("raise ValueError")
    (vendored / "module_of_its_own.py").touch()
    add_plugin("farm", f"import sys\nsys.path.insert(0, {str(vendored)!r})")
    code = (
        "from trunkline.plugins import load_plugins\nload_plugins(strict=True)\n"
        "import module_of_its_own, statistics\nprint(statistics.mean([1, 3]))"
    )
    assert run_python(code, site).stdout == "2\n"


def test_plugin_can_not_change_the_hooks_that_the_others_implement(add_plugin: AddPlugin) -> None:
    add_plugin("farm", "from trunkline.plugins import catalog, host\ncatalog.SPECS.clear()")
    add_plugin("good")
    catalog = load_plugins()
    assert [catalog.plugin(name).status for name in ("farm", "good")] == ["failed", "loaded"]


ENTRY_POINTS = {
    "Latin-1": "[trunkline]\nf\xe4rm = m\n".encode("latin-1"),
    "UTF-16": "[trunkline]\nfarm = m\n".encode("utf-16"),
    "half a character": b"[trunkline]\nfarm\xed\xa0\x80 = m\n",
    "byte order mark": b"\xef\xbb\xbf[trunkline]\nfarm = module_of_fake_farm\n",
    "no equals sign": b"[trunkline]\n; a comment\nfarm = module_of_fake_farm\n",
}


@pytest.mark.parametrize("contents", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
def test_command_works_beside_entry_points_that_can_not_be_parsed(
    contents: bytes, add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm")
    add_plugin("good")
    (site / "fake_farm-1.0.dist-info" / "entry_points.txt").write_bytes(contents)
    command = "import sys; from trunkline.cli import main; sys.argv[1:] = {}; main()"
    arguments = ["--workspace", str(site), "plugins", "list", "--json"]
    done = run_python(command.format(arguments), site, domains="good,fake-farm")
    plugins = {one["domain"]: one for one in json.loads(done.stdout)}
    assert plugins["good"]["status"] == "loaded"
    assert "can't be parsed" in plugins["fake-farm"]["reason"]


def test_entry_points_of_no_plugin_are_ignored_in_whatever_encoding(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm")
    other = site / "other-1.0.dist-info"
    other.mkdir()
    (other / "entry_points.txt").write_bytes(b"[console_scripts]\n\xe4 = m:main\n")
    assert {one.domain for one in load_plugins().plugins if one.status == "loaded"} >= {"farm"}


@pytest.mark.parametrize(
    "change",
    [
        "torch.set_default_dtype(torch.float64)",
        "torch.set_grad_enabled(False)",
        "torch.set_default_device('meta')",
        "torch.set_float32_matmul_precision('medium')",
        "torch.use_deterministic_algorithms(True)",
    ],
)
def test_defaults_of_a_torch_that_the_plugin_imports_first_are_restored(
    change: str, add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", f"import torch\n{change}")
    code = (
        "from trunkline.plugins import load_plugins\n"
        "print(*load_plugins().plugin('farm').notes)\nimport torch\n"
        "print(torch.get_default_dtype(), torch.is_grad_enabled(), torch.ones(1).device, "
        "torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())"
    )
    assert run_python(code, site).stdout.splitlines() == [
        "importing it changes the defaults of torch, which was restored",
        "torch.float32 True cpu highest False",
    ]


def test_plugin_that_changes_nothing_has_no_notes(add_plugin: AddPlugin) -> None:
    add_plugin("farm")
    assert load_plugins().plugin("farm").notes == ()


def test_child_process_of_a_plugin_may_end_itself(add_plugin: AddPlugin) -> None:
    add_plugin(
        "farm",
        "import os\nchild = os.fork()\nif not child:\n    os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n",
    )
    assert load_plugins().plugin("farm").status == "loaded"


def test_child_process_that_goes_on_does_not_run_the_command_again(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", "import os\nif not os.fork():\n    raise SystemExit(3)\nos.wait()\n")
    done = run_python(
        "from trunkline.plugins import load_plugins\nprint(load_plugins().plugin('farm').status)",
        site,
    )
    assert done.stdout == "loaded\n"


def test_what_is_written_when_the_process_ends_stays_off_stdout(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", "import atexit\natexit.register(print, 'goodbye')")
    command = "import sys; from trunkline.cli import main; sys.argv[1:] = {}; main()"
    arguments = ["--workspace", str(site), "plugins", "list", "--json"]
    done = run_python(command.format(arguments), site)
    assert "farm" in {plugin["domain"] for plugin in json.loads(done.stdout)}
    assert "goodbye" in done.stderr


def test_thread_of_a_plugin_does_not_keep_the_process_from_ending(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", "import threading\nthreading.Thread(target=threading.Event().wait).start()")
    code = "from trunkline.plugins import load_plugins\nprint(*load_plugins().plugin('farm').notes)"
    done = run_python(code, site, timeout=60)
    assert "importing it starts a thread" in done.stdout
    assert done.returncode == 0


def test_thread_that_ends_with_the_import_is_not_noted(add_plugin: AddPlugin) -> None:
    add_plugin(
        "farm",
        "import threading\nthread = threading.Thread(target=int)\nthread.start()\nthread.join()",
    )
    assert load_plugins().plugin("farm").notes == ()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("lambda: os._exit(0)", "it tried to end the program with os._exit(0)"),
        (
            "lambda: exec('raise ValueError(\\'postgresql://ada:s3cret-Word@db/x\\')')",
            "ValueError: postgresql://…@db/x",
        ),
    ],
    ids=["ends the process", "fails"],
)
def test_function_that_runs_when_the_process_ends_changes_no_exit_code(
    function: str, reason: str, add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", f"import atexit, os\natexit.register({function})")
    command = "import sys; from trunkline.cli import main; sys.argv[1:] = {}; main()"
    arguments = ["--workspace", str(site), "recipes", "show", "no/thing"]
    done = run_python(command.format(arguments), site)
    assert done.returncode == 2
    assert "There is no recipe 'no/thing'" in done.stderr
    assert f"Warning: an error in module_of_fake_farm.<lambda> was ignored: {reason}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


def test_error_in_a_thread_is_one_line_without_secrets(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin(
        "farm",
        "import threading\n"
        "def fail():\n    raise ValueError('postgresql://ada:s3cret-Word@db/x')\n"
        "thread = threading.Thread(target=fail, name='poll')\nthread.start()\nthread.join()",
    )
    command = "import sys; from trunkline.cli import main; sys.argv[1:] = {}; main()"
    arguments = ["--workspace", str(site), "recipes", "list"]
    done = run_python(command.format(arguments), site)
    assert "an error in the thread poll was ignored: ValueError: postgresql" in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------- interrupts


@pytest.fixture
def default_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, whatever the test runner set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_during_an_import_names_the_plugin(
    add_plugin: AddPlugin, default_interrupts: None
) -> None:
    add_plugin("farm", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass")
    with pytest.raises(Interrupted, match=r"'farm' of fake-farm 1\.0 was imported") as caught:
        load_plugins()
    assert "--no-plugin farm" in (caught.value.hint or "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_slow_import_is_noted_on_stderr(
    add_plugin: AddPlugin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(isolation, "SLOW_SECONDS", 0.0)
    add_plugin("farm", "import time\ntime.sleep(0.3)")
    load_plugins()
    assert "importing the plugin 'farm' of fake-farm has taken 0 s" in capsys.readouterr().err


# ------------------------------------------------------------------------- unfinished imports


def test_plugin_that_crashes_the_process_is_named_once_by_the_next_one(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", "import ctypes\nctypes.CDLL(None)._exit(0)")
    done = run_python("from trunkline.plugins import load_plugins\nload_plugins()", site)
    assert done.returncode == 0
    marker = ImportMarker(domain="farm", distribution="fake-farm", version="1.0")
    assert unfinished_imports() == [marker]
    assert unfinished_imports() == []


def test_import_of_a_running_process_is_not_reported(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin(
        "farm",
        "from trunkline.plugins import unfinished_imports\nimport os\n"
        "assert unfinished_imports() == []\n",
    )
    done = run_python("from trunkline.plugins import load_plugins\nload_plugins(strict=True)", site)
    assert done.stderr == ""
    assert unfinished_imports() == []


def test_plugins_load_where_no_marker_can_be_written(
    add_plugin: AddPlugin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "file"))
    add_plugin("farm")
    assert load_plugins().plugin("farm").status == "loaded"
    assert unfinished_imports() == []


def test_next_command_says_which_plugin_ended_the_one_before(
    add_plugin: AddPlugin, site: Path, tmp_path: Path
) -> None:
    add_plugin("farm", "import ctypes\nctypes.CDLL(None)._exit(0)")
    code = "from trunkline.cli import main\nmain()"
    path = os.pathsep.join((str(site), os.environ.get("PYTHONPATH", "")))
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    environment = os.environ | {"PYTHONPATH": path, "TRUNKLINE_WORKSPACE": str(workspace)}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )

    assert command("recipes", "list").stdout == ""
    done = command("--no-plugin", "farm", "plugins", "list", "--json")
    assert "an earlier command ended while it imported the plugin 'farm' of fake-farm 1.0" in (
        done.stderr
    )
    statuses = {plugin["domain"]: plugin["status"] for plugin in json.loads(done.stdout)}
    assert statuses["farm"] == "blocked"
