"""Sentences, tables and the picture of an audit say what its numbers say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from potkit.experiments import audit
from potkit.models import faults as of_models
from potkit.objectives import faults as of_objectives
from potkit.report import audits


def runs(**gains: float) -> pd.DataFrame:
    """Six seeds of the base, whose denoise has 0.9 of scratch's error, and of settings with
    ``gains``; 1 % of noise.
    """
    rng = np.random.default_rng(0)
    rows = []
    for setting, gain in ({"as_it_is": 0.9} | gains).items():
        for seed in range(6):
            for arm, factor in (("scratch", 1.0), ("denoise", gain)):
                error = 0.2 * factor * np.exp(rng.normal(0, 0.01))
                row = dict(setting=setting.replace("_", " "), arm=arm, labels=50, seed=seed)
                row |= dict(status="ok", forces_mae=error, energy_mae=error, seconds=1.0)
                rows.append(row)
    return pd.DataFrame(rows)


def test_sentences_tell_what_is_told_and_only_that():
    base, bad, like, last = audits.sentences(runs(bad=1.1, like=0.9))
    assert base.startswith("as it is: force MAE of denoise against scratch −10 % (−1")
    assert bad.startswith("bad: the ratio of denoise to scratch changes by +2")
    assert bad.endswith("less is gained.")
    assert "not told from 0 (" in like
    assert last == "Told from the gain as it is, of 2 settings: bad."


def test_a_declared_contrast_is_no_gain():
    table = runs(bad=1.1)
    plain = audits.gains(table)
    longer = table[table["arm"] == "scratch"].assign(arm="scratch-longer")
    longer["forces_mae"] *= 0.5
    table = pd.concat([table, longer], ignore_index=True)
    table["forces_rmse"] = 2 * table["forces_mae"]
    for metric, against in (("forces_mae", "denoise"), ("forces_rmse", "scratch")):
        arm = "denoise" if against == "scratch" else "scratch-longer"
        table.attrs["primary"] = {"arm": arm, "against": against, "metric": metric}
        pd.testing.assert_frame_equal(audits.gains(table), plain)


def test_where_none_is_told_the_intervals_are():
    said = audits.sentences(runs(like=0.9, alike=0.9))
    assert any(
        line.startswith("No gain is told") and "does not make them the same" in line
        for line in said
    )


def test_more_gained_is_said_as_such():
    assert audits.sentences(runs(good=0.7))[1].endswith("more is gained.")


def test_all_settings_as_one_family_are_a_stricter_question():
    """A p of 0.016 is told alone, not in a family of ten."""
    one, two = runs(bad=1.1), runs(like=0.9, alike=0.9)
    line = audits.together({"one": one, "two": two})
    assert line.startswith("All 3 settings as one family: told from the gain as it is: bad (")
    weak = runs(weak=0.9)
    rows = (weak["setting"] == "weak") & (weak["arm"] == "denoise")
    weak.loc[rows, "forces_mae"] *= np.exp(0.02 + 0.014 * np.array([1, -1, 1, -1, 1, -1]))
    table = audit.table(weak, metrics=["forces_mae"])
    (p,) = table.loc[table["quantity"] == audit.GAIN, "p"]
    assert 0.005 < p < 0.05 and audits.together({"weak": weak}).count("told from the gain") == 1
    many = {str(i): runs(like=0.9) for i in range(9)}
    line = audits.together({"weak": weak} | many)
    assert line.startswith("All 10 settings as one family: no gain is told (p by Holm: ")
    assert f"weak {10 * p:.2g}" in line


def scaled(table: pd.DataFrame, setting: str, factor: float) -> pd.DataFrame:
    """Both arms of a setting with ``factor`` times their error: the gain stays."""
    rows = table["setting"] == setting
    return table.assign(forces_mae=table["forces_mae"].where(~rows, factor * table["forces_mae"]))


def test_a_choice_that_is_told_speaks_for_itself():
    table = runs(no_clipping=0.9, isolated_atoms=0.9)
    table = scaled(scaled(table, "no clipping", 0.7), "isolated atoms", 1.3)
    clip, references = audits.on_defaults(table)
    assert clip.startswith("largest gradient norm: none instead of 10")
    assert "scratch is better and denoise is better, which speaks for none" in clip
    assert clip.endswith("the default is 10.")
    assert "which speaks for least-squares; the default is that." in references


def test_a_gain_is_no_reason_for_a_choice():
    """Denoise as good as it was, scratch worse: the gain is larger, and that speaks against it."""
    table = scaled(runs(isolated_atoms=0.6), "isolated atoms", 1.5)
    (line,) = audits.on_defaults(table)
    assert "with isolated, scratch is worse, which speaks for least-squares" in line
    assert line.endswith("gains with isolated and with least-squares are different quantities.")
    assert "The gain is larger with isolated" in line


def test_arms_may_disagree():
    (line,) = audits.on_defaults(scaled(runs(no_clipping=0.5), "no clipping", 1.3))
    assert "The arms disagree; the default stays 10." in line


def test_a_choice_that_is_not_told_rests_on_its_interval():
    (line,) = audits.on_defaults(runs(no_clipping=0.9))
    assert "Neither arm is told from 0" in line and "between the default, 10," in line


def test_the_table_names_shared_runs_and_hides_verdicts_of_smoke():
    table = runs(bad=1.1)
    scratch = table["arm"] == "scratch"
    own = table.loc[scratch & (table["setting"] == "as it is"), "forces_mae"].to_numpy()
    table.loc[scratch & (table["setting"] == "bad"), "forces_mae"] = own
    shown = audits.in_words(audit.table(table, metrics=["forces_mae"]))
    assert shown.loc[0, "change of scratch"] == "as the base"
    assert shown.loc[0, "verdict on the gain"] == "less is gained"
    hidden = audits.in_words(audit.table(table), verdicts=False)
    assert set(hidden["verdict on the gain"]) == {audits.NO_VERDICT}


@pytest.mark.parametrize(
    "percent, text",
    [(12.4, "+12"), (-3.0, "−3"), (0.3, "+0.3"), (-0.32, "−0.3"), (0.97, "+1"), (0.0, "+0.0")],
)
def test_small_changes_keep_their_sign(percent, text):
    assert audits._whole(percent) == text


def test_the_picture_fills_what_is_told_and_draws_the_base_once():
    chart = audits.figure({"one": runs(bad=1.1), "two": runs(bad=1.1, like=0.9)})
    one, two = chart.data
    assert list(one.y) == ["as it is", "bad"] and list(two.y) == ["like"]
    assert list(one.marker.symbol) == ["square", "square"]
    assert list(two.marker.symbol) == ["square-open"]
    np.testing.assert_allclose(one.x[0], -10, atol=2)
    assert list(chart.layout.yaxis.categoryarray) == ["like", "bad", "as it is"]
    smoke = audits.figure({"one": runs(bad=1.1)}, verdicts=False)
    assert list(smoke.data[0].marker.symbol) == ["square", "square-open"]


def test_fault_tables_have_every_fault_and_its_setting():
    how = {
        "experiment": [
            {
                "grid": {"setting": "pooled energy"},
                "model": {"faults": ["pooled"]},
                "arms": {"denoise": {"faults": ["wrong-sign"]}},
            },
            {"grid": {"setting": "as it is"}, "model": {}, "arms": {"denoise": {}}},
        ]
    }
    switched = audits.audited(how)
    assert switched == {"pooled": "pooled energy", "wrong-sign": "pooled energy"}
    models = audits.faults_of_models(switched).set_index("fault")
    assert list(models.index) == list(of_models.FAULTS)
    assert models.loc["pooled", "audited as"] == "pooled energy"
    assert models.loc["mask-shift", "audited as"] == "–"
    objectives = audits.faults_of_objectives(switched).set_index("fault")
    assert list(objectives.index) == list(of_objectives.FAULTS)
    assert (models["source"] != "").all() and (objectives["source"] != "").all()


def test_defaults_are_read_from_the_code():
    chosen = audits.defaults()
    for setting, (_, base, other) in audits.CHOICES.items():
        assert chosen[setting] in (base, other)
