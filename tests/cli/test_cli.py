"""The command line: the whole path on a tiny file, and one clear line for every mistake, with
nothing half-written.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from potkit.cli import main as cli
from potkit.datasets.records import RECORDS
from potkit.errors import ConfigError

# C at the origin, H at four corners of a cube
METHANE = 0.63 * np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
QUICK = "--batch-size 4 --device cpu --config-set progress=false".split()
SMALL = ["--set", "hidden=8", "--set", "layers=2", *QUICK]


def extxyz(
    path: Path, count: int = 24, symbols: str = "CHHHH", broken: str = "", seed: int = 0
) -> Path:
    """Shaken methanes, bound by springs to their tetrahedron, so that energy and forces belong
    together.
    """
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    for frame in range(count):
        shift = 0.05 * rng.standard_normal(METHANE.shape)
        pos = METHANE + shift
        energy = 5.0 * float((shift**2).sum())
        forces = -10.0 * shift
        if broken == "nan" and frame == 3:
            pos[1, 2] = np.nan
        if broken == "overlap" and frame == 3:
            pos[2] = pos[1]
        label = "" if broken == "no energy" and frame == 3 else f"energy={energy:.8f} "
        lines += [str(len(pos)), f'{label}Properties=species:S:1:pos:R:3:forces:R:3 pbc="F F F"']
        for symbol, row in zip(symbols, np.hstack([pos, forces]), strict=True):
            lines.append(f"{symbol} " + " ".join(f"{number:.8f}" for number in row))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def methane(tmp_path_factory) -> Path:
    return extxyz(tmp_path_factory.mktemp("data") / "methane.xyz")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, methane) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    options = ["--data", str(methane), "--sigma", "0.1", "--steps", "4", "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", *options, *SMALL])
    assert not stop.value.code
    return out


# --- the path -----------------------------------------------------------------------------------


def test_pretrain_finetune_evaluate(run, here, methane, pretrained):
    test = extxyz(here / "test.xyz", 6, seed=1)
    sources = ["--data", methane, "--init", pretrained, "--test", test]
    arguments = ["finetune", *sources, "--labels", 8, "--steps", 6, *QUICK]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "runs/finetune/best.safetensors" in out and "test: Evaluation(6 structures" in out
    code, evaluated, _ = run("evaluate", "runs/finetune", "--data", test, "--out", "errors.csv")
    assert code == 0
    # the stored model is the one that was tested
    first = evaluated.splitlines()[:3]
    assert first[0].removeprefix("test.xyz: ") in out and all(line in out for line in first[1:])
    report = here / "runs/finetune/report"
    names = {
        f"{part}{end}"
        for part in ("valid", "test", "test.xyz")
        for end in (".json", "-parity.html")
    }
    assert names <= {path.name for path in report.iterdir()}
    assert len((here / "errors.csv").read_text().splitlines()) == 7
    weights = (here / "runs/finetune/best.safetensors").read_bytes()
    code, _, _ = run(*arguments)  # finished: found, not trained anew
    assert code == 0 and (here / "runs/finetune/best.safetensors").read_bytes() == weights
    code, _, err = run(*arguments, "--lr", 0.01)
    assert code == 1 and "runs/finetune holds another run" in err


def test_references_and_normalization(run, here, methane, pretrained):
    """From options and from a file; the checkpoint speaks in eV by itself, and fine-tuning from it
    starts with its own.
    """
    from potkit.training import checkpoints

    extxyz(here / "test.xyz", 6, seed=1)
    base = ["finetune", "--data", methane, "--init", pretrained, "--steps", 2, *QUICK]
    atoms = ["--config-set", "isolated_energies={H: -13.6, C: -1029.0}"]
    mean = ["--config-set", "normalization=mean-std"]
    code, _, err = run(*base, "--references", "isolated", *atoms, *mean, "--out", "a")
    assert code == 0, err
    model = checkpoints.load("a")
    assert float(model.references[6]) == -1029.0
    assert float(model.shift) == pytest.approx(1029.0 + 4 * 13.6, abs=5)
    code, out, err = run("evaluate", "a", "--data", "test.xyz")
    assert code == 0 and "6 structures" in out, err
    (here / "none.yaml").write_text("references: none\nnormalization: mean-std\noptimizer: adam\n")
    code, _, err = run(*base, "--config", "none.yaml", "--out", "b")
    assert code == 0, err
    settings = checkpoints.read("b")[1]["config"]
    assert (settings["references"], settings["optimizer"]) == ("none", "adam")
    again = ["finetune", "--data", methane, "--init", "a", "--steps", 2, *QUICK]
    for words in ([], ["--references", "fit"]):
        code, _, err = run(*again, *words, "--out", "c")
        assert code == 0 and checkpoints.load("c").shift is None, err
    said = one_line(run(*base, "--references", "isolated", "--out", "d"))
    assert "isolated_energies" in said and not (here / "d").exists()
    code, _, err = run(
        *base, "--config", "none.yaml", "--references", "wB97X/6-31G(d)", "--out", "d"
    )
    assert code == 1 and "references are given twice" in err


def test_every_registered_objective_and_model_is_reachable(run, methane):
    from potkit import models, objectives

    for name in objectives.names():
        assert cli._objective(name, None).name == name
    assert cli._objective("masked", ["elements=[1, 6]"], ratio=0.25).elements == (1, 6)
    for name in models.names():
        assert set(models.presets(name))
    assert run("pretrain", "--data", methane, "--model", "no-such")[2].startswith(
        "error: unknown model 'no-such'; there are "
    )


def test_settings_file_and_options(here, methane):
    (here / "train.yaml").write_text("epochs: 2\nlr: 0.0001\nbatch_size: 8\n")
    config = cli._config(here / "train.yaml", ["clip=1.5", "ema=0.9"], batch_size=4, seed=None)
    assert (config.epochs, config.lr, config.batch_size) == (2, 1e-4, 4)
    assert (config.clip, config.ema, config.seed) == (1.5, 0.9, 0)
    # not the file's two epochs
    assert cli._config(here / "train.yaml", None, steps=7).total_steps(1000) == 7


def test_seed_decides_the_weights():
    one, same, other = (
        cli._model("egnn", "small", ["hidden=8"], seed).state_dict() for seed in (1, 1, 2)
    )
    assert all((one[k] == same[k]).all() for k in one)
    assert any((one[k] != other[k]).any() for k in one)


def test_split_is_used(run, here, methane, pretrained):
    code, out, _ = run(
        "data", "split", methane, "--out", "split.npz", "--fractions", "0.5,0.25,0.25", "--seed", 3
    )
    assert code == 0 and out == "split.npz: train 12, valid 6, test 6\n"
    base = ["finetune", "--data", methane, "--split", "split.npz", "--steps", 2, *SMALL]
    assert "test: Evaluation(6 structures" in run(*base)[1]
    assert "--split brings its own validation" in run(*base, "--valid", methane)[2]
    other = extxyz(here / "other.xyz", 24, seed=5)
    assert "split.npz: made for" in run("finetune", "--data", other, "--split", "split.npz")[2]


def test_data_commands(run, methane):
    code, out, _ = run("data", "list")
    assert code == 0 and "ani-mini" in out and "tip3p-mini" in out and "md22" in out
    code, out, _ = run("data", "info", methane)
    assert code == 0 and "24 structures" in out and "CH4" in out
    code, out, _ = run("data", "check", methane)
    assert code == 0 and "fingerprint: " in out


def test_notebooks_run_with_parameters(run, here):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    for name, body in (("01_good", "print(seeds, steps)"), ("02_bad", "1 / 0")):
        first = new_code_cell(
            'profile = "quick"\nseeds = None\nsteps = None', metadata={"tags": ["parameters"]}
        )
        nbformat.write(new_notebook(cells=[first, new_code_cell(body)]), here / f"{name}.ipynb")
    parameters = ["-p", "seeds", "[0, 1]", "-p", "steps=3"]
    code, out, err = run("run", "0*.ipynb", "--profile", "smoke", *parameters, "--out", "out")
    assert code == 1 and err == "error: 1 of 2 notebooks failed: 02_bad.ipynb\n"
    assert "ZeroDivisionError" in out
    assert nbformat.read(here / "out" / "01_good.ipynb", 4).cells[2].outputs[0].text == "[0, 1] 3\n"
    code, _, err = run("run", "01_good.ipynb", "-p", "sigma", "0.1")
    assert code == 1
    assert err == "error: 01_good.ipynb: unknown parameter 'sigma'; known: profile, seeds, steps\n"


# --- mistakes -----------------------------------------------------------------------------------


def one_line(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 1, (out, err)
    # what was read may stand before it
    *read, last = err.splitlines()
    assert last.startswith("error: ") and all(" structures, " in line for line in read), err
    return last


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--data", "no-such-set"],
            "'no-such-set' is neither a file or folder nor a data set; "
            f"data sets: {', '.join(r.name for r in RECORDS)}",
        ),
        (["--data", "missing.xyz"], "'missing.xyz' is neither"),
        (["--data", "DATA", "--sigma", "0"], "sigma must be a positive number, got 0.0"),
        (["--data", "DATA", "--sigma", "-0.1"], "sigma must be a positive number, got -0.1"),
        (
            ["--data", "DATA", "--objective", "masked", "--ratio", "0"],
            "ratio must be in (0, 1], got 0",
        ),
        (
            ["--data", "DATA", "--objective", "masked", "--ratio", "1.5"],
            "ratio must be in (0, 1], got 1.5",
        ),
        (
            ["--data", "DATA", "--objective", "masked", "--sigma", "0.1"],
            "masked has no setting 'sigma'",
        ),
        (
            ["--data", "DATA", "--objective", "denoize"],
            "unknown objective 'denoize'; there are denoise",
        ),
        (["--data", "DATA", "--preset", "tiny"], "unknown preset 'tiny' of egnn"),
        (["--data", "DATA", "--set", "hiden=64"], "egnn has no option 'hiden'"),
        (["--data", "DATA", "--set", "hidden"], "--set 'hidden' is not KEY=VALUE"),
        (
            ["--data", "DATA", "--config-set", "batchsize=3"],
            "unknown key 'batchsize' (did you mean 'batch_size'?)",
        ),
        (
            ["--data", "DATA", "--config", "train.yaml"],
            "train.yaml: config: unknown key 'learning_rate'",
        ),
        (["--data", "DATA", "--config", "none.yaml"], "none.yaml: cannot be read"),
        (["--data", "DATA", "--lr", "-1"], "lr: input should be greater than 0, got -1.0"),
        (
            ["--data", "DATA", "--device", "tpu"],
            "device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'",
        ),
    ],
)
def test_wrong_settings(run, here, methane, arguments, message):
    (here / "train.yaml").write_text("learning_rate: 0.1\n")
    arguments = [methane if a == "DATA" else a for a in arguments]
    assert message in one_line(run("pretrain", *arguments, "--steps", 2, "--out", "out"))
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "broken, symbols, message",
    [
        ("nan", "CHHHH", "bad.xyz: frame 3: position of atom 1 is not a finite number"),
        ("overlap", "CHHHH", "bad: atoms 1 and 2 of structure 3 are closer"),
        ("", "CHHHX", "bad.xyz: frame 0: unknown element 'X'"),
    ],
)
def test_wrong_structures(run, here, broken, symbols, message):
    path = extxyz(here / "bad.xyz", 12, symbols, broken)
    line = one_line(run("finetune", "--data", path, "--steps", 2, "--out", "out", *SMALL))
    assert message in line
    assert not (here / "out").exists()


def test_a_structure_without_energy_is_said(run, here):
    path = extxyz(here / "some.xyz", 12, "CHHHH", "no energy")
    arguments = ["finetune", "--data", path, "--steps", 2, "--out", "out", *SMALL]
    line = one_line(run(*arguments, "--missing-labels", "stop"))
    assert "some: 1 of 12 structures have no energy, the first is structure 3" in line
    code, _, err = run(*arguments)
    assert code == 0
    assert "some: 12 structures, 11 with energy, 12 with forces; each is trained" in err


def test_geometries_alone_pretrain(run, here):
    water = "3\nconformer\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
    (here / "geometry.xyz").write_text(4 * water)
    code, _, err = run(
        "pretrain", "--data", "geometry.xyz", "--steps", 2, "--batch-size", 2, "--out", "out"
    )
    assert code == 0 and "4 structures, 0 with energy, 0 with forces" in err
    line = one_line(run("evaluate", "out", "--data", "geometry.xyz"))
    assert "only pretrained (denoise)" in line


def test_names_and_units_are_options(run, here):
    head = 'Properties=species:S:1:pos:R:3:F:R:3 my_E=-730.0 pbc="F F F"'
    (here / "a.xyz").write_text(f"2\n{head}\nH 0 0 0 1 0 0\nH 0 0 0.75 -1 0 0\n")
    options = ["--energy-key", "my_E", "--forces-key", "F", "--energy-unit", "kcal/mol"]
    code, out, err = run("data", "info", "a.xyz", *options)
    assert code == 0 and "('my_E')" in err and "('F')" in err
    assert "-15.8279" in out  # −730 kcal/mol in eV per atom
    assert "0.0250" in out  # rms of 1 kcal/mol/Å along one of three axes, in eV/Å
    line = one_line(run("data", "info", "rmd17-mini", "--energy-unit", "eV"))
    assert "--energy-unit is for files of your own" in line


def test_truncated_hdf5(run, here):
    import h5py

    with h5py.File(here / "whole.h5", "w") as file:
        group = file.create_group("gdb/gdb-0")
        group["coordinates"], group["energies"] = np.zeros((50, 5, 3)), np.zeros(50)
        group["species"] = np.array([b"C", b"H", b"H", b"H", b"H"])
    data = (here / "whole.h5").read_bytes()
    (here / "cut.h5").write_bytes(data[: len(data) // 2])
    assert "cut.h5" in one_line(run("data", "check", "cut.h5"))


def test_wrong_checkpoints(run, here, methane, pretrained):
    from potkit import models

    finetune = ["finetune", "--data", methane, "--steps", 2, "--out", "out"]
    assert "nowhere: no such checkpoint" in one_line(run(*finetune, "--init", "nowhere"))
    assert "without --model it is the one in --init" in one_line(
        run(*finetune, "--init", pretrained, "--set", "hidden=8")
    )
    wider = ["--model", "egnn", "--set", "hidden=12", "--set", "layers=2"]
    line = one_line(run(*finetune, "--init", pretrained, *wider))
    assert "best.safetensors" in line and "shape" in line
    (here / "broken.safetensors").write_bytes((pretrained / "best.safetensors").read_bytes()[:1000])
    assert "broken.safetensors: not a readable checkpoint" in one_line(
        run("evaluate", "broken.safetensors", "--data", methane)
    )
    others = [name for name in models.names() if name != "egnn"]
    if others:
        line = one_line(run(*finetune, "--init", pretrained, "--model", others[0]))
        assert f"holds egnn, the model is {others[0]}" in line
    assert not (here / "out").exists()


def test_wrong_notebook_and_profile(run):
    assert one_line(run("run", "none.ipynb")) == "error: none.ipynb: no such notebook"
    assert "profile 'fast' is unknown; known: smoke, quick, paper" in one_line(
        run("run", "--profile", "fast")
    )


def test_wrong_recipe_and_fractions(run, methane):
    assert "no recipe called 'rmd17'; there are ani-mini" in one_line(run("data", "make", "rmd17"))
    assert "--fractions 'a,b' is not a list" in one_line(
        run("data", "split", methane, "--out", "s.npz", "--fractions", "a,b")
    )
    assert "needs three shares" in one_line(
        run("data", "split", methane, "--out", "s.npz", "--fractions", "0.5,0.5")
    )


def test_debug_shows_where(here):
    with pytest.raises(ConfigError):
        cli.main(["--debug", "run", "--profile", "fast"])


def test_unwritable_place_is_one_line(run, here, methane):
    (here / "file").write_text("")
    line = one_line(run("data", "split", methane, "--out", "file/split.npz"))
    assert "file" in line


def test_installed_command(here):
    """The real process: version, a usage error of the shell's kind, and a user's mistake."""
    command = [sys.executable, "-m", "potkit"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("potkit 0.")
    assert "torch 2.13.0" in done.stdout
    done = subprocess.run([*command, "data", "info", "no-such-set"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 'no-such-set'")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*command, "pretrain"], capture_output=True, text=True)
    assert done.returncode == 1 and "--data is missing (`potkit pretrain --help`" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "info", "ani-mini", "--nosuch"], "no such option: --nosuch"),
        (["nosuch"], "no such command 'nosuch'"),
        (["evaluate"], "missing argument 'checkpoint'"),
        (
            ["evaluate", "x", "--data", "y", "--batch-size", "many"],
            "invalid value for '--batch-size'",
        ),
        (["data", "info", "a", "b", "c"], "unexpected extra argument"),
        (["data", "info", "--format"], "requires an argument"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    line = capsys.readouterr().err
    assert end.value.code == 1
    assert line.startswith("error: ") and line.count("\n") == 1 and said in line
    assert "--help` shows" in line
