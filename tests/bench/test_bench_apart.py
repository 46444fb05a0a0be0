"""Peers with an environment of their own: what their processes answer, how they end, how their
environments are made, and each of them where it is set up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tiny import one_line

from potkit.bench import common, evaluate, finetune, md
from potkit.bench import peers as in_process
from potkit.bench.peers import apart
from potkit.bench.peers.apart import environments as made
from potkit.bench.peers.apart import matches, worker
from potkit.cli import main as cli
from potkit.errors import ConfigError, DataError
from potkit.report import tables
from potkit.structures import outputs

# before any test names another folder: those that the user has set up
READY = {peer.name for peer in apart.PEERS if peer.environment.state() == "ready"}
USERS = os.environ.get("POTKIT_PEERS")
SIZES = 'dict(version="1.2", first_s=3.0, last_s=0.5, prepare_s=0.001, parameters=7, edges=EDGES)'
SERVE = """
import json, sys, time
print("a greeting of the package", file=sys.stderr)
settings = json.loads(sys.stdin.readline())
print(json.dumps(SIZES), flush=True)
for line in sys.stdin:
    ANSWER
"""
GO = "print(json.dumps(dict(seconds=0.25, peak_mb=None)), flush=True)"


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def script(folder: Path, answer: str = GO, edges: int = 0, sizes: str = SIZES) -> Path:
    """A worker's script that answers each request by the line ``answer``."""
    text = SERVE.replace("SIZES", sizes).replace("EDGES", str(edges)).replace("ANSWER", answer)
    path = folder / "serve_fake.py"
    path.write_text(textwrap.dedent(text))
    return path


def started(folder: Path, answer: str = GO, **more) -> worker.Worker:
    return worker.Worker("fake", [sys.executable, str(script(folder, answer, **more))], {}, 1)


# -- the process -------------------------------------------------------------------------------
def test_a_worker_answers_and_ends(tmp_path):
    with started(tmp_path) as fake:
        process = fake._process
        assert fake.sizes["parameters"] == 7
        seconds = fake.go()
        assert isinstance(seconds, common.Seconds) and seconds == 0.25
        assert np.isnan(fake.peak_mb())
        assert common.timed(fake.go) == 0.25  # not the time of the round trip
    assert process.poll() == 0


@pytest.mark.parametrize(
    "answer, message",
    [
        ("raise ValueError('no such layer')", "fake ended with 1: ValueError: no such layer"),
        ("sys.exit(3)", "fake ended with 3: a greeting of the package"),
        ("print('hello', flush=True)", "fake answered 'hello'"),
        ("print('[1]', flush=True)", "fake answered '[1]'"),
        ("print('{}', flush=True)", "fake answered '{}'"),
        ("""print('{"error": "two\\\\nlines"}', flush=True)""", "fake: two lines"),
    ],
)
def test_a_failure_is_one_line(tmp_path, answer, message):
    with started(tmp_path, answer) as fake, pytest.raises(ConfigError) as error:
        fake.go()
    assert one_line(error.value) == f"bench: {message}"
    assert fake._process.poll() is not None


def test_a_worker_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "ANSWER", 0.3)
    monkeypatch.setattr(worker, "END", 0.2)
    with started(tmp_path, "time.sleep(600)") as fake, pytest.raises(ConfigError) as error:
        fake.go()
    assert one_line(error.value) == "bench: fake did not answer within 0.3 s"
    assert fake._process.poll() == -signal.SIGKILL


def test_a_worker_that_does_not_start_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"bench: fake: no-such-python: No such file"):
        worker.Worker("fake", ["no-such-python"], {}, 1)
    with pytest.raises(ConfigError, match=r"bench: fake answered '\{\"version\": \"1.2\"\}'"):
        started(tmp_path, sizes='dict(version="1.2")')


def test_threads_are_said_to_every_library():
    variables = worker.thread_variables(3)
    assert {variables[name] for name in ("OMP_NUM_THREADS", "NPROC")} == {"3"}
    assert "PYTHONPATH" not in made.bare_environment(**variables)


INTERRUPTED = """
import sys, time
from pathlib import Path
from potkit.bench.peers.apart import worker
with worker.Worker("fake", [sys.executable, sys.argv[1]], {}, 1) as fake:
    print(fake._process.pid, flush=True)
    fake.go()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_ends_the_process(tmp_path, number):
    """By Ctrl-C at once, in the middle of its work; killed, its end of the line says so."""
    waits = "time.sleep(600)" if number == signal.SIGINT else "pass"
    command = [sys.executable, "-c", INTERRUPTED, str(script(tmp_path, waits))]
    here = {**os.environ, "PYTHONPATH": str(Path(apart.__file__).parents[4])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here) as ours:
        theirs = psutil.Process(int(ours.stdout.readline()))
        time.sleep(0.2)
        ours.send_signal(number)
    assert ours.returncode != 0
    psutil.wait_procs([theirs], timeout=20)
    assert not theirs.is_running()


TOY = """
from ase.calculators.lj import LennardJones
from serving import Work, batches, dynamics
print("a greeting on the stream of the answers")
PACKAGE = "numpy"
def build(settings, structures):
    (atoms,) = structures
    assert batches([1, 2, 3], 2) == [[1, 2], [3]]
    assert atoms.arrays["forces"].shape == (26, 3) and atoms.get_velocities().any()
    moved = (atoms, LennardJones(), settings["steps"], settings["time_step"])
    def run():
        assert dynamics(*moved).shape == (26, 3)
    return Work(run, lambda: None, parameters=3, edges=4, peak_mb=lambda run: 1.5)
"""


def test_a_script_is_served(tmp_path):
    """Our end of the line with theirs, and structures as they arrive there."""
    shutil.copytree(apart.WORKERS, tmp_path / "workers")
    (tmp_path / "workers" / "serve_toy.py").write_text(TOY)
    start = [sys.executable, str(tmp_path / "workers" / "start.py")]
    structures = common.molecules(1)
    apart.write(tmp_path / "x.npz", structures, md.started(structures).get_velocities())
    task = apart.Task("md", 1, steps=2, time_step=0.5)
    told = apart.settings(task, matches.Match("toy", {}), structures, tmp_path / "x.npz")
    with worker.Worker("toy", [*start, "serve_toy"], told, 1) as toy:
        assert toy.sizes["version"] == np.__version__ and toy.sizes["edges"] == 4
        assert 0 < toy.go() < 60 and toy.peak_mb() == 1.5
        with pytest.raises(ConfigError, match="toy: unknown request 'stop'"):
            toy.ask("stop", 60)
    with pytest.raises(ConfigError, match="toy: ModuleNotFoundError: No module named 'serve_it'"):
        worker.Worker("toy", [*start, "serve_it"], told, 1)


# -- in the comparison -------------------------------------------------------------------------
@pytest.fixture
def fake_peer(monkeypatch, tmp_path):
    """(edges) -> the only peer there is: a fake one with a SchNet, that is set up."""

    def make(edges: int) -> apart.PeerApart:
        peer = apart.PeerApart(
            made.Environment("graph-pes", ("graph-pes",)),
            "unused",
            {"schnet": (matches.graph_pes_schnet,)},
        )
        command = [sys.executable, str(script(tmp_path, edges=edges))]
        monkeypatch.setattr(made.Environment, "state", lambda self: "ready")
        monkeypatch.setattr(apart.PeerApart, "command", lambda self: command)
        monkeypatch.setattr(apart, "PEERS", (peer,))
        return peer

    return make


def edges_of(structures) -> int:
    model = in_process.reference("schnet", 8)
    batch = structures.batch()
    return len(model.graph(batch, batch.pos).sender)


def test_rows_stand_beside_the_others(fake_peer):
    fake_peer(edges_of(common.molecules(2)))
    table = finetune.run(repeats=2, cases=("schnet",), systems=("molecules",), batch=2, hidden=8)
    assert list(table["implementation"]) == ["PyG SchNet", "potkit", "graph-pes SchNet"]
    row = table.iloc[2]
    assert row["median_s"] == 0.25 and np.isnan(row["agreement"]) and np.isnan(row["peak_mb"])
    assert table["ratio"].iloc[0] == 1
    assert row["note"].startswith(
        "graph-pes SchNet 1.2, a process of its own: other weights, 7 par"
    )
    ours = in_process.reference("schnet", 8).n_parameters()
    assert f"(potkit {ours:,})" in row["note"] and "its first call took 3 s" in row["note"]
    other = table[table["implementation"] != "PyG SchNet"]
    assert list(tables.standings(other)["fastest_other"]) == ["graph-pes SchNet"]


def test_dynamics_and_evaluation_take_it(fake_peer):
    fake_peer(edges_of(common.molecules(1)))
    options = dict(repeats=1, cases=("schnet",), hidden=8)
    table = md.run(**options, systems=("molecules",), steps=2)
    assert list(table["implementation"]) == ["PyG SchNet", "potkit", "graph-pes SchNet"]
    assert table["ms_per_step"].iloc[2] == pytest.approx(125)
    table = evaluate.run(**options, structures=1, memory=False)
    assert table["per_second"].iloc[2] == pytest.approx(4)


def test_other_edges_stop_the_benchmark(fake_peer):
    fake_peer(5)
    with pytest.raises(DataError) as error:
        finetune.run(repeats=1, cases=("schnet",), systems=("molecules",), batch=1, hidden=8)
    found = edges_of(common.molecules(1))
    assert one_line(error.value) == f"bench: graph-pes SchNet finds 5 edges, potkit {found}"


def test_what_is_not_set_up_is_left_out_in_one_line(environments):
    said = []
    assert apart.chosen(None, "cpu", said.append) == []
    names = ("graph-pes, mace-torch, mlip", "graph-pes mace-torch mlip")
    assert said == [f"without {names[0]}: `potkit bench peers {names[1]}` gets them"]
    assert apart.chosen((), "cpu", said.append) == [] and len(said) == 1
    with pytest.raises(ConfigError) as error:
        apart.chosen(("mlip",), "cpu")
    assert one_line(error.value) == (
        "--peer mlip: its environment is absent; make it by `potkit bench peers mlip`"
    )


def test_peers_are_measured_on_a_cpu_only(fake_peer):
    fake_peer(1)
    assert apart.chosen(None, "cuda") == []
    with pytest.raises(ConfigError, match="--peer graph-pes is measured on a CPU only"):
        apart.chosen(("graph-pes",), "cuda")


@pytest.mark.parametrize("case", ["schnet", "painn", "nequip"])
def test_every_match_is_as_large(case):
    model = in_process.reference(case, 64)
    found = [m(model) for peer in apart.PEERS for m in peer.networks.get(case, ())]
    assert found and {match.options["cutoff"] for match in found} == {model.cutoff}
    if case == "nequip":
        (irreps,) = [m.options["target_irreps"] for m in found if "target_irreps" in m.options]
        assert irreps == "16x0e + 16x0o + 16x1o + 16x1e + 16x2e + 16x2o"


# -- the environments --------------------------------------------------------------------------
@pytest.fixture
def tiny_package(tmp_path, monkeypatch):
    """An environment whose one package lies on disk, and pip told to ask nobody else."""
    package = tmp_path / "tiny-package"
    package.mkdir()
    setup = '[project]\nname = "{}"\nversion = "0.1"\n[tool.setuptools]\npy-modules = []\n'
    (package / "pyproject.toml").write_text(setup.format("tiny-package"))
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*build, str(package), "-w", str(wheels)], check=True)
    (package / "pyproject.toml").write_text(setup.format("nvidia-tiny"))
    subprocess.run([*build, str(package), "-w", str(wheels)], check=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(made, "REQUIREMENTS", tmp_path)
    (tmp_path / "tiny.txt").write_text("tiny-package==0.1\n")
    return made.Environment("tiny", ("tiny-package",))


def test_an_environment_is_made_and_found(tiny_package, environments, tmp_path, monkeypatch):
    assert tiny_package.state() == "absent"
    said = []
    assert tiny_package.make(say=said.append) == environments / "tiny"
    assert tiny_package.state() == "ready" and len(said) == 2
    found = [
        str(tiny_package.python),
        "-c",
        "import importlib.metadata as m; m.version('tiny-package')",
    ]
    subprocess.run(found, check=True)
    (tmp_path / "tiny.txt").write_text("tiny-package==0.2\n")
    assert tiny_package.state() == "outdated"
    with pytest.raises(ConfigError) as error:  # there is no such version
        tiny_package.make()
    assert one_line(error.value).startswith("bench peers: tiny: pip install ended with 1: ERROR")
    assert tiny_package.state() == "not whole" and (environments / "tiny" / made.LOG).exists()


def test_packages_for_gpus_are_refused(tiny_package, environments, tmp_path):
    (tmp_path / "cuda.txt").write_text("")
    wants_gpu = made.Environment("cuda", ("tiny-package", "nvidia-tiny"))
    with pytest.raises(ConfigError, match="cuda would bring 1 packages for GPUs \\(nvidia-tiny"):
        wants_gpu.make()
    assert wants_gpu.state() == "not whole"


def test_an_interrupted_environment_is_not_whole(environments, monkeypatch):
    environment = made.Environment("graph-pes", ("graph-pes",))

    def interrupt(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(made.subprocess, "run", interrupt)
    environment.folder.mkdir(parents=True)
    (environment.folder / made.RECORD).write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        environment.make()
    assert environment.state() == "not whole"
    with pytest.raises(KeyboardInterrupt):  # and it is potkit's to make anew
        environment.make()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_potkit_did_not_make_is_left_as_it_is(kind, tiny_package, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_PEERS", str(tmp_path / "peers"))
    folder, thesis = tiny_package.folder, tmp_path / "work" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    elif kind == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(thesis.parent)
    for _ in range(2):
        with pytest.raises(ConfigError, match="holds something that potkit did not make; move it"):
            tiny_package.make()
    assert thesis.read_text() == "mine"
    if kind != "link":
        mine = folder / "thesis.txt" if kind == "folder" else folder
        assert mine.read_text() == "mine"


def test_a_folder_of_mine_where_an_environment_was_is_left_as_it_is(
    tiny_package, tmp_path, monkeypatch
):
    monkeypatch.setenv("POTKIT_PEERS", str(tmp_path / "peers"))
    folder = tiny_package.make()
    tiny_package.make()  # its own is made anew
    assert tiny_package.state() == "ready"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that potkit did not make"):
        tiny_package.make()
    assert (folder / "thesis.txt").read_text() == "mine"
    assert not [name for name in os.listdir(folder.parent) if outputs.is_temporary(name)]


def test_versions_are_pinned():
    for peer in apart.PEERS:
        lines = peer.environment.requirements.read_text().splitlines()
        pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
        assert set(peer.environment.wanted) <= set(pinned)
        assert not [name for name in pinned if name.startswith(made.CUDA)]


def test_the_command_makes_and_lists(environments, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        made.Environment, "make", lambda self, cuda, say: asked.append((self.name, cuda))
    )
    for words in ([], ["mlip"]):
        with pytest.raises(SystemExit) as done:
            cli.main(["bench", "peers", *words])
        assert not done.value.code
    assert asked == [("mlip", False)]
    out = capsys.readouterr().out
    assert "graph-pes: absent" in out and "`potkit bench peers graph-pes`" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("peers schnetpack", "peer 'schnetpack' is not one of graph-pes, mace-torch, mlip"),
        ("md --peer apax", "--peer 'apax' is not one of graph-pes, mace-torch, mlip, none"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", *arguments.split()])
    assert done.value.code == 1
    assert capsys.readouterr().err == f"error: {message}\n"


# -- the real ones -----------------------------------------------------------------------------
@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("name", apart.NAMES)
def test_a_peer_that_is_set_up_works(name, monkeypatch):
    """A network of the peer takes a step, moves atoms and predicts, on potkit's edges."""
    if name not in READY:
        pytest.skip(f"`potkit bench peers {name}` was not run here")
    if USERS is None:
        monkeypatch.delenv("POTKIT_PEERS")
    else:
        monkeypatch.setenv("POTKIT_PEERS", USERS)
    (peer,) = apart.named([name])
    case = next(iter(peer.networks))
    options = dict(repeats=1, cases=(case,), hidden=8, memory=False, peer_names=(name,))
    tables = [
        finetune.run(**options, systems=("molecules",), batch=1),
        md.run(**options, systems=("boxes",), steps=1),
        evaluate.run(**options, structures=2, batch=1),
    ]
    for table in tables:
        theirs = table[table["implementation"].str.startswith(name)]
        assert len(theirs) == len(peer.networks[case])
        assert (theirs["median_s"] > 0).all()
