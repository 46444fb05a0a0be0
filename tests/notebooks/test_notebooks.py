"""The notebook runner, that a changed stored number is noticed, and that the committed notebooks
keep the house rules.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from potkit import models
from potkit.errors import ConfigError, DataError, PotkitError
from potkit.experiments import experiment, tasks
from potkit.notebooks import profiles, runner, text
from potkit.objectives import Denoise, Masked, Supervised
from potkit.report import gallery
from potkit.training.config import TrainConfig

COMMITTED = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
PROFILES = dict(
    smoke=dict(steps=1, seeds=[0]),
    quick=dict(steps=5, seeds=[0, 1]),
    paper=dict(steps=9, seeds=[0, 1, 2]),
)
START = """from potkit import notebooks
smoke, quick, paper = dict(steps=1), dict(steps=5), dict(steps=9)
run = notebooks.settings(profile, smoke=smoke, quick=quick, paper=paper, steps=steps)"""


def write(path: Path, *sources: str, parameters: str = 'profile = "quick"\nsteps = None') -> Path:
    cells = [
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, sources),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def output(path: Path, cell: int) -> str:
    return "".join(o.get("text", "") for o in runner.read(path).cells[cell].outputs)


# --- settings -----------------------------------------------------------------------------------


def test_settings_are_the_profiles_unless_a_parameter_is_given():
    run = runner.settings("quick", **PROFILES, seeds=None, steps=7)
    assert (run.profile, run.steps, run.seeds) == ("quick", 7, [0, 1])
    assert "<td>steps</td><td>7</td>" in run._repr_html_()


def test_environment_goes_before_the_cell(monkeypatch):
    monkeypatch.setenv("POTKIT_PROFILE", "smoke")
    assert runner.settings("quick", **PROFILES).steps == 1


@pytest.mark.parametrize(
    "profile, parameters, message",
    [
        ("fast", {}, "profile 'fast' is unknown; known: smoke, quick, paper"),
        (
            "quick",
            {"seed": 1},
            "parameter 'seed' is not one of the profile's settings: steps, seeds",
        ),
        (
            "quick",
            {"seeds": 3},
            r"parameter seeds=3 does not fit: expected something like \[0, 1\]",
        ),
        (
            "quick",
            {"steps": "many"},
            "parameter steps='many' does not fit: expected something like 5",
        ),
        ("quick", {"steps": True}, "parameter steps=True does not fit"),
    ],
)
def test_wrong_settings_are_one_line(profile, parameters, message):
    with pytest.raises(ConfigError, match=message) as caught:
        runner.settings(profile, **PROFILES, **parameters)
    assert caught.value._render_traceback_() == [f"ConfigError: {caught.value}"]


def test_profiles_must_set_the_same_names():
    with pytest.raises(
        ConfigError, match="profiles quick and paper do not set the same names: steps"
    ):
        runner.settings("quick", **{**PROFILES, "paper": dict(seeds=[0])})


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("[0,1]", [0, 1]),
        ("1e-4", 1e-4),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("ani-mini", "ani-mini"),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_parameters_are_read_as_yaml(text, value):
    parsed = runner.parse_parameter("name", text)
    assert parsed == value and type(parsed) is type(value)


def test_broken_yaml_is_named():
    with pytest.raises(ConfigError, match=r"-p seeds: '\[0,': not YAML"):
        runner.parse_parameter("seeds", "[0,")


def test_parameters_come_from_the_tagged_cell(tmp_path):
    path = write(
        tmp_path / "a.ipynb",
        parameters='profile = "quick"\nseeds: list = [0, 1]  # three\nsteps = None',
    )
    assert runner.parameters(path) == {"profile": "quick", "seeds": [0, 1], "steps": None}
    with pytest.raises(DataError, match="parameter steps must be a literal value"):
        runner.parameters(write(tmp_path / "b.ipynb", parameters="steps = len([1])"))
    nbformat.write(new_notebook(cells=[new_code_cell("x = 1")]), tmp_path / "c.ipynb")
    with pytest.raises(DataError, match="no cell is tagged 'parameters'"):
        runner.parameters(tmp_path / "c.ipynb")


def test_files_that_are_no_notebooks(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(DataError, match=r"broken\.ipynb: not a notebook"):
        runner.read(tmp_path / "broken.ipynb")
    with pytest.raises(DataError, match=r"none.*: no such notebook"):
        runner.find([tmp_path / "none*.ipynb"])


# --- execute ------------------------------------------------------------------------------------


def test_execute_goes_on_after_a_failure_and_says_what_failed(tmp_path):
    bad = write(tmp_path / "01_bad.ipynb", START, "1 / 0")
    good = write(
        tmp_path / "02_good.ipynb",
        START,
        "import os\nprint(run.steps, run.profile, os.environ['POTKIT_FIGURES'])",
    )
    said = []
    outcomes = runner.execute(
        [tmp_path / "0*.ipynb"], "smoke", {"steps": 3}, tmp_path / "out", report=said.append
    )
    assert [o.status for o in outcomes] == ["failed", "ok"]
    # counted with the injected cell
    assert outcomes[0].error == "cell 4: ZeroDivisionError: division by zero"
    assert (
        output(tmp_path / "out" / "02_good.ipynb", 3) == f"3 smoke {tmp_path / 'out' / 'figures'}\n"
    )
    assert "2 notebooks" in said[-2]
    assert "1 failed" in said[-2]
    assert str(tmp_path / "out") in said[-1]
    assert "POTKIT_PROFILE" not in os.environ
    # the originals stay as they were
    assert [runner.read(p).cells[1].execution_count for p in (bad, good)] == [None, None]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(profile="fast"), "profile 'fast' is unknown"),
        (dict(values={"sigm": 1}), "unknown parameter 'sigm'; known: profile, steps"),
        (dict(values={"profile": "smoke"}), "chosen by --profile"),
        (dict(inplace=True, profile="smoke"), "--inplace stores the outputs of profile quick"),
    ],
)
def test_wrong_arguments_stop_before_anything_runs(tmp_path, arguments, message):
    path = write(tmp_path / "a.ipynb", START)
    with pytest.raises(ConfigError, match=message):
        runner.execute([path], **{"out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_inplace_stores_clean_outputs_and_leaves_failures_alone(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(runner, "_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    bar = "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass\n"
    source = f"{bar}print({str(tmp_path)!r} + '/figures/a.png')"
    path = write(tmp_path / "notebooks" / "01_a.ipynb", START, source)
    broken = write(tmp_path / "notebooks" / "02_b.ipynb", START, "1 / 0")
    before = broken.read_bytes()
    runner.execute(inplace=True, report=lambda _: None)
    stored = runner.read(path)
    assert len(stored.cells) == 3 and [c.execution_count for c in stored.cells] == [1, 2, 3]
    assert output(path, 2) == "figures/a.png\n"  # no progress bar, no path of this machine
    assert "papermill" not in path.read_text() and "widget" not in path.read_text()
    assert broken.read_bytes() == before
    first = path.read_bytes()
    runner.execute([path], inplace=True, report=lambda _: None)
    assert path.read_bytes() == first


def test_clean_keeps_what_is_not_a_progress_bar():
    bar = {
        "application/vnd.jupyter.widget-view+json": {},
        "text/plain": "  0%|          | 0/3 [00:00<?, ?it/s]",
    }
    viewer = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Viewer(structure)"}
    outputs = [
        new_output("display_data", data=bar),
        new_output("display_data", data=viewer),
        new_output("stream", name="stderr", text=" 50%|#####     | 1/2 [00:00<00:00, 9.1it/s]"),
        new_output("stream", name="stderr", text="note: 50 structures left out"),
    ]
    notebook = new_notebook(
        cells=[new_code_cell("x", outputs=outputs, execution_count=7), new_markdown_cell("text")]
    )
    kept = runner.clean(notebook).cells[0]
    assert [o.get("text") or o.data["text/plain"] for o in kept.outputs] == [
        "Viewer(structure)",
        "note: 50 structures left out",
    ]
    assert kept.execution_count == 1


# --- the check bites ----------------------------------------------------------------------------


def test_nbval_sees_a_changed_number_and_not_the_profile(tmp_path):
    """`make test` on two notebooks whose outputs were stored with profile quick: one as stored,
    one with a digit changed.
    """
    marked = f"# {runner.CHECKED}\nprint(sum(range(10)))"
    path = write(tmp_path / "01_stored.ipynb", START, marked, "print(run.steps)")
    runner.execute([path], "quick", out=tmp_path / "out", report=lambda _: None)
    stored = runner.clean(runner.read(tmp_path / "out" / path.name))
    # another profile would print another number here; it is not marked
    assert stored.cells[3].outputs[0].text == "5\n"
    nbformat.write(stored, tmp_path / "good.ipynb")
    stored.cells[2].outputs[0].text = "46\n"
    nbformat.write(stored, tmp_path / "changed.ipynb")
    options = "-q --nbval-lax --nbval-current-env -p no:cacheprovider -o addopts= --rootdir".split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path), "good.ipynb", "changed.ipynb"],
        cwd=tmp_path,
        env={**os.environ, "POTKIT_PROFILE": "smoke"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    failed = re.findall(r"^FAILED (\S+)", done.stdout, flags=re.M)
    assert failed == ["changed.ipynb::Cell"], done.stdout
    assert "1 failed, 7 passed" in done.stdout
    assert "46" in done.stdout and "45" in done.stdout


# --- the gallery of figures ---------------------------------------------------------------------


def test_gallery_names_every_figure_under_its_notebook(tmp_path):
    figures, books = tmp_path / "figures", tmp_path / "notebooks"
    figures.mkdir()
    books.mkdir()
    for name, title in (("02_scan", "Gain &amp; loss"), ("01_first", "First"), ("extra", "Other")):
        (figures / f"{name}.html").write_text(f"<html><head><title>{title}</title></head></html>")
    (figures / "01_first.png").write_bytes(b"")
    write(books / "01_a.ipynb")
    text = gallery.write(figures).read_text()
    assert (
        text.index("[01_a](../notebooks/01_a.ipynb)")
        < text.index("[![First](01_first.png)](01_first.html)")
        < text.index("**Gain & loss**")
    )
    assert "(02_scan.png)" not in text and "extra.html" in text
    assert gallery.write(figures).read_text() == text


def test_gallery_in_the_repository_is_up_to_date(repository, tmp_path):
    figures = repository / "figures"
    listed = set(re.findall(r"\]\((\w[^)/]*\.html)\)", (figures / "README.md").read_text()))
    assert listed == {p.name for p in figures.glob("*.html")}


# --- the committed notebooks --------------------------------------------------------------------


def test_notebooks_are_numbered_without_gaps():
    numbers = [path.name[:3] for path in COMMITTED]
    assert numbers == [f"{n:02d}_" for n in range(1, len(numbers) + 1)]
    assert len(numbers) >= 7


def set_up(path: Path, **values) -> dict:
    """What the notebook's names are after its cells tagged ``setup``: settings, objectives, data.

    ``values`` are put behind its parameters.
    """
    space: dict = {}
    exec(runner.tagged(path, "parameters")[0], space)
    unknown = values.keys() - space.keys()
    assert not unknown, f"{path.name} has no parameter {unknown}"
    space |= values
    for source in runner.tagged(path, "setup"):
        exec(source, space)
    return space


# parameter of a notebook -> values that must not get past its set-up, the last part is the culprit
WRONG = {
    "profile": ["fast"],
    "data": ["no-such-set"],
    "sets": [["no-such-set"], ["ani-mini", "no-such-set"]],
    "model": ["no-such-net"],
    "models": [["no-such-net"]],
    "molecules": [["no-such-molecule"]],
    "sigma": [-0.1],
    "sigmas": [[-0.1], [0.1, -0.1], [0.0]],
    "ratio": [0.0],
    "ratios": [[1.5]],
    "elements": [[["Xx"]]],
    "along": [2.0],
    "labels": [100],
    "seeds": [3],
    "jobs": ["many"],
}
# checked where it is used, not in the set-up
UNCHECKED = {"device", "water", "seed"}
MISTAKES = [
    (path, name, value)
    for path in COMMITTED
    for name in runner.parameters(path)
    for value in WRONG.get(name, [])
]


def test_every_parameter_is_tried_with_a_wrong_value():
    """A parameter of a new name belongs into WRONG, with what its notebook must refuse."""
    names = {name for path in COMMITTED for name in runner.parameters(path)}
    assert names - UNCHECKED == WRONG.keys()


@pytest.mark.parametrize(
    "path, name, value",
    MISTAKES,
    ids=[f"{path.stem[:2]}-{name}-{value}" for path, name, value in MISTAKES],
)
def test_a_wrong_parameter_stops_the_set_up_with_one_line(path, name, value, monkeypatch):
    monkeypatch.setattr("potkit.experiments.run", lambda *_, **__: pytest.fail("training started"))
    with pytest.raises(PotkitError) as caught:
        set_up(path, **{"profile": "smoke"} | {name: value})
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    culprit = value
    while isinstance(culprit, list):
        culprit = culprit[-1]
    assert str(culprit) in line, line


def up_to_settings(source: str) -> str:
    """The set-up cell of a notebook to the end of ``run = notebooks.settings(…)``."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "run":
            return "\n".join(source.splitlines()[: statement.end_lineno])
    raise AssertionError("the set-up cell does not make `run`")


@pytest.mark.parametrize("profile", runner.PROFILES)
def test_settings_of_every_profile_fit(profile, monkeypatch):
    """Training settings, objectives and networks of every profile are accepted, also where the
    data are not at hand.
    """
    for path in COMMITTED:
        space: dict = {}
        exec(runner.tagged(path, "parameters")[0], space)
        space["profile"] = profile
        first = runner.tagged(path, "setup")[0]
        exec(up_to_settings(first), space)
        run = space["run"]
        assert run.profile == profile
        for name in ("pretrain", "finetune"):
            if hasattr(run, name):
                TrainConfig(**getattr(run, name))
        if hasattr(run, "supervised"):
            Supervised(**run.supervised)
        for name in getattr(run, "networks", {}):
            profiles.network(run, name)
        if hasattr(run, "organic"):
            models.build(**run.organic["network"])
            TrainConfig(**run.organic["pretrain"])
            TrainConfig(**run.organic["finetune"])
            Supervised(**run.organic["supervised"])
        if hasattr(run, "seeds") and profile != "smoke":
            assert len(run.seeds) >= 3


@pytest.mark.parametrize(
    "shared, objective, at_least",
    [
        ("profiles.MOLECULES", Denoise(sigma=profiles.MOLECULES["quick"]["sigma"]), 3),
        ('profiles.searched("molecules")', Denoise(sigma=0.1), 2),
        ('profiles.searched("water")', Masked(), 2),
    ],
    ids=["molecules", "searched-molecules", "searched-water"],
)
def test_notebooks_share_their_pretrained_networks(shared, objective, at_least):
    """Notebooks with the same shared settings name the same pretraining: the store's hash of it is
    one.
    """
    sharing = [p for p in COMMITTED if shared in runner.tagged(p, "setup")[0]]
    folders = set()
    for path in sharing:
        space = set_up(path, profile="quick")
        run = space["run"]
        if not {"pool", "pools"} & space.keys():
            assert getattr(run, "shipped", False)  # nothing is pretrained there
            continue
        pool = space["pools"][run.data][0] if "pools" in space else space["pool"]
        one = experiment.Experiment(
            model=profiles.network(run),
            objectives={"one": objective},
            pretrain_on=profiles.unlabelled(run, pool),
            train=pool,
            test=pool,
            labels=[10],
            pretrain_config=TrainConfig(**run.pretrain),
            seeds=run.seeds,
        )
        folders.add(tasks.pretrain_folder(one, "one", 0).name)
    assert len(sharing) >= at_least and len(folders) == 1, folders


TRAINING = [p for p in COMMITTED if "experiments.run(" in p.read_text()]


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_notebooks_that_train_keep_their_runs_and_type_no_result(path):
    """Verdicts are sentences made of stored tables; counting, subtracting and typing them is not
    how a notebook says something.
    """
    cells = runner.read(path).cells
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    said = code.replace('"saved", ', "")
    if "notebooks.keep_ensembles(" in code:
        assert '.say("calibrated")' in said
    elif "notebooks.keep_simulations(" in code:
        assert '.say("moved")' in said
    else:
        assert "notebooks.keep_runs(" in code and '.say("verdicts")' in said
    assert not re.search(r"idxmin|\.effect\b|\[.effect.\]", code)
    assert not re.search(r"\d (?:meV|%)(?!\s(?:of|interval))", prose.replace("5 % of ANI", ""))


def test_six_notebooks_train():
    assert len(TRAINING) >= 6


# --- notebooks as text --------------------------------------------------------------------------


def test_texts_agree_with_their_notebooks():
    assert text.differences() == [], "write them anew: python -m potkit.notebooks.text"
    there = set((COMMITTED[0].parent / text.FOLDER).glob("*.py"))
    assert there == {text.twin(path) for path in COMMITTED}


@pytest.fixture
def paired(tmp_path) -> Path:
    """A notebook that was executed, and its text."""
    path = write(tmp_path / "01_a.ipynb", START, "print(1 + 1)", "print(2 + 2)")
    notebook = runner.read(path)
    notebook.cells[1].metadata["tags"] = ["setup"]
    notebook.cells.insert(2, new_markdown_cell("# A *title*"))
    for number, cell in enumerate((notebook.cells[3], notebook.cells[4]), start=1):
        cell.outputs = [new_output("stream", name="stdout", text=f"{2 * number}\n")]
        cell.execution_count = number
    nbformat.write(notebook, path)
    assert text.write([path]) == [text.twin(path)] and text.write([path]) == []
    return path


@pytest.mark.parametrize("change", ["source", "tag", "text", "missing"])
def test_a_text_that_differs_is_named(paired, change):
    assert text.differences([paired]) == []
    twin, notebook = text.twin(paired), runner.read(paired)
    if change == "source":
        notebook.cells[3].source = "print(1 + 2)"
    elif change == "tag":
        del notebook.cells[1].metadata["tags"]
    elif change == "text":
        twin.write_text(twin.read_text().replace("2 + 2", "2 + 3"))
    else:
        twin.unlink()
    nbformat.write(notebook, paired)
    (line,) = text.differences([paired])
    assert line.startswith(str(twin)) and ("missing" if change == "missing" else "differs") in line


def test_outputs_are_no_difference(paired):
    notebook = runner.read(paired)
    notebook.cells[3].outputs = []
    nbformat.write(notebook, paired)
    assert text.differences([paired]) == [] and "stdout" not in text.twin(paired).read_text()


def test_an_edited_text_comes_back_and_other_outputs_stay(paired):
    twin = text.twin(paired)
    twin.write_text(twin.read_text().replace("2 + 2", "2 + 3"))
    assert text.take_back([paired]) == [paired] and text.take_back([paired]) == []
    notebook = runner.read(paired)
    assert text.differences([paired]) == []
    assert [c.source for c in notebook.cells[2:]] == ["# A *title*", "print(1 + 1)", "print(2 + 3)"]
    assert notebook.cells[3].outputs[0].text == "2\n" and notebook.cells[4].outputs == []
    assert runner.tagged(paired, "setup") == [START] and "jupytext" not in notebook.metadata


def test_the_command_checks_and_writes(paired, capsys):
    assert text.main(["--check", str(paired)]) == 0
    text.twin(paired).write_text("# %%\n1\n")
    assert text.main(["--check", str(paired)]) == 1 and "differs" in capsys.readouterr().out
    assert text.main([str(paired)]) == 0 and text.main(["--check", str(paired)]) == 0
    assert text.main(["--check", str(paired.with_name("none.ipynb"))]) == 1
    text.twin(paired).unlink()
    assert text.main(["--back", str(paired)]) == 1 and "no such text" in capsys.readouterr().err


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
class TestCommitted:
    def test_parameters(self, path):
        parameters = runner.parameters(path)
        assert parameters["profile"] == runner.COMMITTED_PROFILE
        assert any(
            "notebooks.settings(" in c.source or "import settings" in c.source
            for c in runner.read(path).cells
        )

    def test_executed_without_errors_or_noise(self, path):
        code = [c for c in runner.read(path).cells if c.cell_type == "code" and c.source.strip()]
        assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
        outputs = [o for c in code for o in c.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        noise = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
        assert not noise

    def test_figures_have_a_static_image(self, path):
        code = [c for c in runner.read(path).cells if c.cell_type == "code"]
        data = [o.data for c in code for o in c.outputs if "data" in o]
        figures = [d for d in data if "application/vnd.plotly.v1+json" in d]
        assert figures and all("image/png" in d or "image/svg+xml" in d for d in figures)

    def test_some_cells_are_checked(self, path):
        checked = [c for c in runner.read(path).cells if runner.CHECKED in c.source]
        assert checked and all(c.outputs for c in checked)

    def test_cells_know_no_machine(self, path):
        text = path.read_text()
        assert not re.search(r'["\' (](/work|/tmp|/root|/home|/Users)/', text)
        assert "papermill" not in runner.read(path).metadata
