"""Results of vla-eval as a baseline row: made by the package itself, paired by task and number, or refused."""

import csv
import json

import pytest
from test_black_box import Server, outcomes
from vla_eval.api import run as run_theirs
from vla_eval.api import serve_background

import vlaprune
from vlaprune import report
from vlaprune.commands import importing, main
from vlaprune.errors import UserError
from vlaprune.interop.results import load, recorded
from vlaprune.methods.dense import Dense
from vlaprune.records import Header, Run, read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def own(folder):
    return vlaprune.evaluate("toy", "random", "toy", method__keep=0.1, episodes=6, output=folder / "random")


@pytest.fixture(scope="module")
def aggregate(folder):
    """The file that vla-eval writes: its server, its benchmark, its runner."""
    with serve_background(Server(Dense)) as server:
        config = {"benchmarks": [{"benchmark": "test_black_box:TheirLights", "episodes_per_task": 6}]}
        run_theirs(config, server_url=server.url, output_dir=folder / "theirs")
    (path,) = (folder / "theirs").glob("*_aggregate.json")
    return path


def changed(aggregate, tmp_path, change):
    said = json.loads(aggregate.read_text())
    change(said)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(said))
    return path


def brought(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        main.main(["import", *map(str, argv)])
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


@pytest.fixture(scope="module")
def theirs(folder, own, aggregate):
    assert importing.main([str(aggregate), "--like", str(own.folder), "--output", str(folder / "vla-eval")]) == 0
    return read(folder / "vla-eval")


def test_their_episodes_are_those_of_the_same_policy_here(folder, theirs):
    dense = vlaprune.evaluate("toy", "dense", "toy", episodes=6, output=folder / "dense")
    assert outcomes(theirs) == outcomes(dense) and theirs.header.tasks == dense.header.tasks


def test_a_report_pairs_them_as_a_baseline_and_judges_nothing(own, theirs):
    table = report.tabulate(report.compare([own, theirs], "vla-eval", mixed=True))
    base, row = table.itertuples()
    assert base.method == "vla-eval¶" and row.method == "random keep=0.1†" and row.verdict == "not judged"
    won = {key: record.success for key, record in own.episodes.items()}
    lost = sum(record.success and not won[key] for key, record in theirs.episodes.items())
    assert row.paired == 12 and row.lost == lost > 0
    unknown = ["kept", "visual", "gflops", "steady", "cold", "packed", "untimed", "ms_answer"]
    assert not base.proved and table.loc[0, [c for c in unknown if c in table]].isna().all()
    (note,) = (n for n in table.attrs["notes"] if n.startswith("¶"))
    assert "without proof of pruning: results of vla-eval 0.8.0" in note and "answer takes" not in note
    with pytest.raises(UserError, match=r"without proof of pruning.*--mixed"):
        report.compare([own, theirs], "vla-eval")


def test_what_is_unknown_is_empty_in_the_csv(theirs):
    for row in csv.DictReader((theirs.folder / "episodes.csv").open()):
        known = {k for k, v in row.items() if v != ""}
        assert known == {"task", "episode", "success", "steps", "attempts", "proved"} and row["proved"] == "0"


def test_an_episode_that_raised_there_is_missing_not_failed(own, aggregate, tmp_path, capsys):
    def raised(said):
        said["tasks"][0]["episodes"][2] |= {"failure_reason": "timeout", "metrics": {"success": False}, "steps": 0}

    path = changed(aggregate, tmp_path, raised)
    code, said, _ = brought(capsys, path, "--like", own.folder, "--output", tmp_path / "run")
    run = read(tmp_path / "run")
    assert code == 0 and "1 raised there" in said and len(run.episodes) == 11 and len(run.missing) == 1


def test_the_same_file_again_changes_nothing_and_another_one_is_refused(own, aggregate, tmp_path, capsys):
    argv = [aggregate, "--like", own.folder, "--output", tmp_path / "run"]
    assert [brought(capsys, *argv)[0] for _ in range(2)] == [0, 0] and len(read(tmp_path / "run").episodes) == 12
    other = changed(aggregate, tmp_path, lambda said: said.update(note="another evaluation"))
    code, _, error = brought(capsys, other, *argv[1:])
    assert code == 2 and "holds another run (results" in error and error.count("\n") == 1


def renamed(said):
    said["tasks"][0]["task"] = "open the drawer"


def later(said):
    for one in (e for task in said["tasks"] for e in task["episodes"]):
        one["episode_idx"] += 40


REFUSED = [
    (lambda said: said.pop("tasks"), "holds no results of vla-eval"),
    (lambda said: said.update(mode="live"), "mode live, where the world did not wait"),
    (renamed, "task 'open the drawer' of the results is none of the run's"),
    (lambda said: said["tasks"][1].update(task=said["tasks"][0]["task"].replace("-", " ")), "several of its tasks are"),
    (lambda said: said["tasks"][0]["episodes"][0].update(episode_idx=1), "comes twice"),
    (lambda said: said["tasks"][0]["episodes"][0].update(episode_idx="1"), "has no number"),
    (lambda said: said["tasks"][0]["episodes"][0].update(metrics={}), "has no success"),
    (lambda said: said["tasks"][0]["episodes"][0].pop("steps"), "or no steps"),
    (later, "no episode in common"),
    (lambda said: [e.update(failure_reason="timeout") for t in said["tasks"] for e in t["episodes"]], "all of its 12"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_paired_is_refused_in_one_line(own, aggregate, tmp_path, capsys, change, words):
    path = changed(aggregate, tmp_path, change)
    code, _, error = brought(capsys, path, "--like", own.folder, "--output", tmp_path / "run")
    assert code == 2 and words in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_task_of_another_name_is_told(own, aggregate, tmp_path, capsys):
    path = changed(aggregate, tmp_path, renamed)
    first = json.loads(aggregate.read_text())["tasks"][0]["task"]
    argv = [path, "--like", own.folder, "--output", tmp_path / "run", "--task"]
    assert brought(capsys, *argv, f"open the drawer={first}")[0] == 0
    code, _, error = brought(capsys, *argv, "open the drawer=nowhere")
    assert code == 2 and "the run has no such task" in error


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_no_file_is_one_line(own, tmp_path, capsys, name):
    code, _, error = brought(capsys, tmp_path / name, "--like", own.folder, "--output", tmp_path / "run")
    assert code == 2 and "cannot be read" in error and error.count("\n") == 1


@pytest.mark.parametrize(("part", "setting"), [("delay", {"mode": "hold"}), ("bench", {"stress": "camera"})])
def test_a_world_that_is_delayed_or_perturbed_is_not_theirs(own, aggregate, part, setting):
    identity = own.header.identity | {part: own.header.identity.get(part, {}) | setting}
    other = Run(own.folder, Header(identity, {}, own.header.tasks), own.episodes)
    with pytest.raises(UserError, match="delayed or perturbed"):
        recorded(load(aggregate), other, "theirs", {})


def test_liberos_tasks_are_recognised_by_their_words(own, aggregate, tmp_path):
    """vla-eval names a task of LIBERO by its sentence, we by its file, which may begin with the scene."""
    names = ["pick_up_the_milk_and_place_it_in_the_basket", "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_pot_on_it"]
    sentences = ["pick up the milk and place it in the basket", "turn on the stove and put the pot on it"]

    def named(said):
        for task, sentence in zip(said["tasks"], sentences, strict=True):
            task["task"] = sentence

    path = changed(aggregate, tmp_path, named)
    episodes = {(names[0], 0): own.episodes["reach-red", 0]}
    like = Run(own.folder, Header(own.header.identity, {}, dict.fromkeys(names, 50)), episodes)
    header, records = recorded(load(path), like, "theirs", {})
    assert list(header.tasks) == names and {r.task for r in records} == set(names)
