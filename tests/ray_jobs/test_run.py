"""What a run remembers, and what makes an artifact another artifact."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.generate import distinct_rationales, generate
from ray_jobs.run import Run
from ray_jobs.stages import PlannedStage, plan_stages
from ray_jobs.training_workers import follow
from rbft import rows
from rbft.config import load_config
from rbft.errors import ArtifactError, DataError, JobError, LeakError, ManifestError, ModelError
from rbft.rationales.review import Change, record_changes
from rbft.rationales.table import rationales_table
from rbft.records import Rationale
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), sample_world(seed=5, sizes={"train": 8, "test": 4}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


class OpenRun:
    """Opens the run again and again, with other overrides."""

    def __init__(self, repository: Path, folder: Path, manifest: Path, model: Path) -> None:
        self._repository = repository
        self._always = [f"output_dir={folder}", f"data.manifest={manifest}", f"model.path={model}"]

    def __call__(self, *overrides: str) -> Run:
        return Run(load_config(self._repository / "configs/miniature.yaml", [*self._always, *overrides]))


@pytest.fixture
def open_run(repository: Path, tmp_path: Path, world: Path, model: Path) -> OpenRun:
    return OpenRun(repository, tmp_path, world, model)


@pytest.mark.parametrize(
    "override",
    [
        *("generation.max_new_tokens=79", "generation.temperature=0.7", "task.persona=a plumber", "video.fps=2", "model.dtype=bfloat16"),
        *("gates.profile=resample", "gates.profile=best_of_n", "teacher.server={url: http://127.0.0.1:9/v1, model: large}"),
    ],
)
def test_what_determines_rationales_gives_them_another_place(open_run: OpenRun, override: str) -> None:
    assert open_run(override).rationale_fingerprint() != open_run().rationale_fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "engine.num_actors=4",
        "engine.rows_per_block=3",
        "training.num_workers=1",
        "seed=9",
        "task.question=Which is it, normal or abnormal?",
        "gates.profile=filter",
        "gates.num_samples=3",
    ],
)
def test_what_does_not_determine_rationales_leaves_them_where_they_are(open_run: OpenRun, override: str) -> None:
    assert open_run(override).rationale_fingerprint() == open_run().rationale_fingerprint()


def test_what_is_drawn_again_depends_on_what_decides_it(open_run: OpenRun) -> None:
    others = ("seed=9", "gates.num_redraws=5", "gates.drop=[not_empty]", "gates.hint=false", "task.concern_labels=[]")
    fingerprints = [open_run("gates.profile=resample", *override).rationale_fingerprint() for override in ((), *((o,) for o in others))]
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_teachers_rationales_are_not_the_models_own(open_run: OpenRun, tmp_path: Path) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    taught, own = open_run(f"teacher.model={{path: {teacher}, dtype: float32}}"), open_run()
    assert taught.rationale_fingerprint() != own.rationale_fingerprint() and taught.model_fingerprint == own.model_fingerprint
    with pytest.raises(ModelError, match="nowhere"):
        open_run(f"teacher.model={{path: {tmp_path}/nowhere}}")


def test_a_seed_determines_sampled_rationales(open_run: OpenRun) -> None:
    sampled = "generation.temperature=0.7"
    assert open_run(sampled, "seed=9").rationale_fingerprint() != open_run(sampled).rationale_fingerprint()


@pytest.mark.parametrize(
    "override",
    ["training.classify={lr_language: 0.1, lr_vision: 0.02}", "training.classify_epochs=3", "seed=9", "task.question=normal or abnormal?"],
)
def test_what_determines_a_stage_gives_it_another_place(open_run: OpenRun, override: str) -> None:
    only_direct = 'evaluation.systems=["direct-sft-1"]'
    (before,), (after,) = plan_stages(open_run(only_direct)), plan_stages(open_run(only_direct, override))
    assert before.spec.fingerprint != after.spec.fingerprint and before.spec.folder != after.spec.folder


def test_two_direct_systems_differ_in_epochs_alone(open_run: OpenRun) -> None:
    one, two = plan_stages(open_run('evaluation.systems=["direct-sft-1","direct-sft-2"]'))
    assert (one.spec.epochs, two.spec.epochs) == (1, 2)
    assert [item.example.id for item in one.items] == [item.example.id for item in two.items]
    assert one.spec.optimiser == two.spec.optimiser and one.spec.seed == two.spec.seed


def test_what_two_systems_share_is_trained_once(open_run: OpenRun) -> None:
    run = open_run('evaluation.systems=["rb-ft","rb-ft-unlabelled","rb-ft-unlabelled@4","rb-ft@4","direct-sft-1@4"]')
    write_rationales(run, num_bad=0)
    generate([run])
    stages = {planned.spec.name: planned for planned in plan_stages(run)}
    assert list(stages) == [
        *("rb-ft/rationale", "rb-ft/classify", "rb-ft-unlabelled@4/classify"),
        *("rb-ft@4/rationale", "rb-ft@4/classify", "direct-sft-1@4/classify"),
    ]
    folders = run.stage_folders()
    assert folders["rb-ft-unlabelled", "classify"] == folders["rb-ft", "classify"]
    assert folders["rb-ft-unlabelled@4", "rationale"] == folders["rb-ft", "rationale"]
    told = ("rb-ft@4/rationale", "rb-ft@4/classify", "direct-sft-1@4/classify")
    four = [[item.example.id for item in stages[name].items] for name in told]
    assert len(four[0]) == 4 and four[0] == four[1] == four[2]


def test_the_controls_differ_from_rb_ft_in_what_stage_1_learns_to_say_and_in_nothing_else(open_run: OpenRun) -> None:
    run = open_run('evaluation.systems=["rb-ft","rb-ft-shuffled","rb-ft-human"]')
    write_rationales(run, num_bad=0)
    generate([run])
    stages = {planned.spec.name: planned for planned in plan_stages(run)}
    own = stages["rb-ft/rationale"]
    for control in ("rb-ft-shuffled", "rb-ft-human"):
        other = stages[f"{control}/rationale"]
        assert [(item.example, item.messages) for item in other.items] == [(item.example, item.messages) for item in own.items]
        assert all(mine.answer != theirs.answer for mine, theirs in zip(own.items, other.items, strict=True))
        assert (other.spec.seed, other.spec.epochs, other.spec.optimiser) == (own.spec.seed, own.spec.epochs, own.spec.optimiser)
        assert other.spec.lineage["videos"] == own.spec.lineage["videos"] and other.spec.lineage["answers"] != own.spec.lineage["answers"]
        assert stages[f"{control}/classify"].items == stages["rb-ft/classify"].items
    assert {item.answer for item in stages["rb-ft-human/rationale"].items} == {example.human_text for example in run.cohort()}


def test_table_4_mixes_own_and_human_text_and_table_3_adds_the_label(open_run: OpenRun) -> None:
    systems = ("rb-ft", "rb-ft-mix-25", "rb-ft-mix-75", "rb-ft-part-25", "rb-ft-label-first")
    run = open_run(f"evaluation.systems=[{','.join(systems)}]")
    write_rationales(run, num_bad=0)
    generate([run])
    stages = {planned.spec.name: planned for planned in plan_stages(run)}
    answers = {name: {item.example.id: item.answer for item in stages[f"{name}/rationale"].items} for name in systems}
    own, human = answers["rb-ft"], {example.id: example.human_text for example in run.cohort()}
    from_model = {name: {id_ for id_, answer in answers[name].items() if answer == own[id_]} for name in systems}
    assert {name: (len(answers[name]), len(from_model[name])) for name in systems} == {
        **{"rb-ft": (8, 8), "rb-ft-mix-25": (8, 2), "rb-ft-mix-75": (8, 6), "rb-ft-part-25": (2, 2), "rb-ft-label-first": (8, 0)}
    }
    assert from_model["rb-ft-part-25"] == from_model["rb-ft-mix-25"] < from_model["rb-ft-mix-75"]
    assert all(answer == human[id_] for id_, answer in answers["rb-ft-mix-25"].items() if id_ not in from_model["rb-ft-mix-25"])
    labels = {example.id: example.label for example in run.cohort()}
    assert answers["rb-ft-label-first"] == {id_: f"Classification: {labels[id_]}\n{text}" for id_, text in own.items()}
    assert len({tuple(item.example.id for item in stages[f"{name}/classify"].items) for name in systems}) == 1


def test_a_system_may_have_rates_of_its_own(open_run: OpenRun) -> None:
    run = open_run(
        'evaluation.systems=["direct-sft-1","direct-sft-2","direct-sft-2@4"]',
        "training.per_system={direct-sft-2: {classify: {lr_language: 0.5, lr_vision: 0.1}}}",
    )
    rates = {planned.system: planned.spec.optimiser.lr_language for planned in plan_stages(run)}
    assert rates == {"direct-sft-1": run.config.training.classify.lr_language, "direct-sft-2": 0.5, "direct-sft-2@4": 0.5}


def test_a_run_remembers_its_times_and_artifacts_when_it_is_opened_again(open_run: OpenRun) -> None:
    run = open_run()
    with run.timed("generate"):
        pass
    run.record_artifact("rationales", "somewhere")
    again = open_run()
    assert again.artifact("rationales") == "somewhere" and "generate" in again.fact("wall_s")
    facts = json.loads(Path(again.layout.run_json).read_text())
    assert facts["versions"]["torch"] and facts["seed"] == 0


def test_the_manifest_is_kept_while_its_source_is_the_same(open_run: OpenRun) -> None:
    before = open_run()
    assert all(example.sha256 for example in before.examples)
    written = Path(before.layout.manifest).stat().st_mtime_ns
    assert open_run().examples == before.examples
    assert Path(before.layout.manifest).stat().st_mtime_ns == written


def test_a_model_folder_without_weights_is_refused_before_anything_starts(open_run: OpenRun, model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"bare: has no weights"):
        open_run(f"model.path={bare}")


def test_a_run_folder_that_cannot_be_written_is_refused_by_name(open_run: OpenRun, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("in the way")
    with pytest.raises(ArtifactError, match="a file/miniature: cannot be written"):
        open_run(f"output_dir={tmp_path / 'a file'}")


def annotations(folder: Path, *rows: str) -> Path:
    path = folder / "labels.csv"
    path.write_text("id,path,label,split\n" + "\n".join(rows) + "\n")
    return path


def test_the_same_bytes_in_two_splits_are_refused(open_run: OpenRun, world: Path, tmp_path: Path) -> None:
    clips = sorted((world.parent / "clips").glob("*.mp4"))
    (tmp_path / "copy.mp4").write_bytes(clips[0].read_bytes())
    labels = ("normal", "abnormal", "normal", "abnormal")
    rows = [f"v{i},{clip},{label},train" for i, (clip, label) in enumerate(zip(clips, labels, strict=False))]
    path = annotations(tmp_path, *rows, f"copy,{tmp_path / 'copy.mp4'},normal,test")
    with pytest.raises(LeakError, match="copy"):
        _ = open_run("data.manifest=null", f"data.annotations={path}").examples


def test_a_label_outside_the_task_is_refused_with_its_line(open_run: OpenRun, world: Path, tmp_path: Path) -> None:
    clip = next((world.parent / "clips").glob("*.mp4"))
    path = annotations(tmp_path, f"v0,{clip},normal,train", f"v1,{clip},abnormmal,train")
    with pytest.raises(ManifestError, match=r"labels\.csv.*3.*abnormmal.*abnormal"):
        _ = open_run("data.manifest=null", f"data.annotations={path}").examples


def write_rationales(run: Run, num_bad: int) -> None:
    """What the actors would have written: `num_bad` error rows, the rest good ones."""
    found = [
        Rationale(example.id, 0, error_code="video_decode", error_message="cut short")
        if i < num_bad
        else Rationale(example.id, 0, text=f"dog {i}")
        for i, example in enumerate(run.cohort())
    ]
    rows.write_part(run.layout.rationales(run.rationale_fingerprint()), rationales_table(found))


def test_too_many_bad_videos_fail_the_job_each_time_it_is_submitted(open_run: OpenRun) -> None:
    run = open_run("data.max_bad_fraction=0.2")
    write_rationales(run, num_bad=2)
    for _ in range(2):
        with pytest.raises(JobError, match=r"2 of 8 videos"):
            generate([run])


def test_videos_without_a_rationale_are_in_neither_stage_and_in_no_system(open_run: OpenRun) -> None:
    run = open_run("data.max_bad_fraction=0.3")
    write_rationales(run, num_bad=2)
    generate([run])
    cohorts = [{item.example.id for item in planned.items} for planned in plan_stages(run)]
    assert cohorts == [{example.id for example in run.cohort()[2:]}] * 4


def test_stage_one_takes_videos_without_labels_if_asked(open_run: OpenRun, world: Path, tmp_path: Path) -> None:
    clips = sorted((world.parent / "clips").glob("*.mp4"))
    labels = ("normal", "abnormal", "normal", "abnormal", "")
    path = annotations(tmp_path, *(f"v{i},{clip},{label},train" for i, (clip, label) in enumerate(zip(clips, labels, strict=False))))
    run = open_run("data.manifest=null", f"data.annotations={path}", "evaluation.systems=[rb-ft-unlabelled]")
    write_rationales(run, num_bad=0)
    generate([run])
    sizes = {planned.spec.name: len(planned.items) for planned in plan_stages(run)}
    assert sizes["rb-ft-unlabelled/rationale"] == 5 and sizes["rb-ft-unlabelled/classify"] == 4


def test_with_the_filter_stage_one_leaves_out_what_does_not_pass_the_gates_and_stage_two_sees_it(open_run: OpenRun) -> None:
    systems = "evaluation.systems=[direct-sft-1,rb-ft,rb-ft-shuffled]"
    good = "Subjects: dog {}.\nAttributes: it is red.\nActions: it climbs.\nScenes: the porch."
    run = open_run(systems)
    found = [
        Rationale(e.id, 0, text="normalnormalnormal" if i < 3 else good.format(i), finish_reason="stop") for i, e in enumerate(run.cohort())
    ]
    rows.write_part(run.layout.rationales(run.rationale_fingerprint()), rationales_table(found))
    generate([run])

    def sizes(*overrides: str) -> dict[str, int]:
        return {planned.spec.name: len(planned.items) for planned in plan_stages(open_run(systems, *overrides))}

    everything = sizes()
    assert set(everything.values()) == {8}
    filtered = sizes("gates.profile=filter")
    assert filtered == everything | {"rb-ft/rationale": 5, "rb-ft-shuffled/rationale": 5}


def test_stage_one_learns_the_rationales_as_they_were_reviewed_and_is_another_stage_then(open_run: OpenRun) -> None:
    run = open_run("evaluation.systems=[direct-sft-1,rb-ft,rb-ft-shuffled,rb-ft-human]")
    write_rationales(run, num_bad=0)
    generate([run])
    before = {planned.spec.name: planned for planned in plan_stages(run)}
    excluded, edited, kept = (example.id for example in run.cohort()[:3])
    folder = run.layout.rationales(run.rationale_fingerprint())
    at = "2026-01-01T00:00:00.000000+00:00"
    record_changes(folder, [Change(at, "ada", kept, 0, "restore")])
    assert [planned.spec.fingerprint for planned in plan_stages(run)] == [planned.spec.fingerprint for planned in before.values()]
    record_changes(folder, [Change(at, "ada", excluded, 0, "exclude"), Change(at, "ada", edited, 0, "edit", "a cat")])
    after = {planned.spec.name: planned for planned in plan_stages(run)}

    def answers(stages: dict[str, PlannedStage]) -> dict[str, str]:
        return {item.example.id: item.answer for item in stages["rb-ft/rationale"].items}

    assert answers(after) == {id_: text for id_, text in answers(before).items() if id_ != excluded} | {edited: "a cat"}
    changed = {name for name in before if after[name].spec.fingerprint != before[name].spec.fingerprint}
    assert changed == {f"{system}/{stage}" for system in ("rb-ft", "rb-ft-shuffled") for stage in ("rationale", "classify")}
    assert {name: planned.items for name, planned in after.items() if name not in changed or name.endswith("/classify")} == {
        name: planned.items for name, planned in before.items() if name not in changed or name.endswith("/classify")
    }


def test_of_two_duplicates_a_review_may_leave_out_the_first_and_the_filter_lets_the_second_pass(open_run: OpenRun) -> None:
    text = "Subjects: dog.\nAttributes: it is red.\nActions: it climbs.\nScenes: the porch."
    overrides = ("evaluation.systems=[rb-ft]", "gates.profile=filter", "gates.drop=[no_near_duplicate]")
    run = open_run(*overrides)
    rows.write_part(
        run.layout.rationales(run.rationale_fingerprint()), rationales_table([Rationale(e.id, 0, text=text) for e in run.cohort()])
    )
    generate([run])
    first, second = (example.id for example in run.cohort()[:2])
    record_changes(
        run.layout.rationales(run.rationale_fingerprint()), [Change("2026-01-01T00:00:00.000000+00:00", "ada", first, 0, "exclude")]
    )
    assert [item.example.id for item in plan_stages(run)[0].items] == [second]


def test_rationales_none_of_which_pass_are_an_error(open_run: OpenRun) -> None:
    write_rationales(open_run(), num_bad=0)  # "dog 1" has no sections
    generate([open_run()])
    with pytest.raises(DataError, match="no training video has a rationale that passes the gates"):
        plan_stages(open_run("gates.profile=filter"))


BEYOND = {
    "class_balance": "training.class_balance=sampling",
    "weights": "training.class_balance=loss",
    "replay": "training.replay_share=0.25",
    "validation": "training.validation={every_steps: 2, patience: 3}",
    "probe": "training.rationale_probe=3",
}


@pytest.fixture
def labelled_run(open_run: OpenRun, world: Path, tmp_path: Path) -> OpenRun:
    """Opens a run with rationales of six training videos, one of which is "abnormal", and two validation videos."""
    clips = sorted((world.parent / "clips").glob("*.mp4"))
    kinds = [*[("normal", "train")] * 5, ("abnormal", "train"), ("normal", "validation"), ("abnormal", "validation"), ("normal", "test")]
    path = annotations(tmp_path, *(f"v{i},{clip},{','.join(kind)}" for i, (clip, kind) in enumerate(zip(clips, kinds, strict=False))))

    class OpenLabelled(OpenRun):
        def __call__(self, *overrides: str) -> Run:
            source = ("data.manifest=null", f"data.annotations={path}", "evaluation.systems=[direct-sft-1,rb-ft]")
            return open_run(*source, *overrides)

    opened = object.__new__(OpenLabelled)
    write_rationales(opened(), num_bad=0)
    generate([opened()])
    return opened


def test_what_goes_beyond_the_paper_makes_another_stage_two_of_it_and_leaves_all_others_as_they_are(labelled_run: OpenRun) -> None:
    def fingerprints(*overrides: str) -> dict[str, str]:
        return {planned.spec.name: planned.spec.fingerprint for planned in plan_stages(labelled_run(*overrides))}

    plain = fingerprints()
    both = {"direct-sft-1/classify", "rb-ft/classify"}
    changed = {name: {stage for stage, each in fingerprints(override).items() if each != plain[stage]} for name, override in BEYOND.items()}
    assert changed == {"class_balance": both, "weights": both, "replay": {"rb-ft/classify"}, "validation": both, "probe": set()}
    other = fingerprints("training.validation={every_steps: 2, patience: 4}")
    assert len({each["rb-ft/classify"] for each in (plain, other, *map(fingerprints, BEYOND.values()))}) == 6  # the probe changes nothing


def test_stage_two_gets_what_it_is_asked_to_have(labelled_run: OpenRun) -> None:
    def stage_two(*overrides: str) -> PlannedStage:
        return {planned.spec.name: planned for planned in plan_stages(labelled_run(*overrides))}["rb-ft/classify"]

    weighted = stage_two(BEYOND["weights"])
    assert {(item.answer, round(item.weight, 3)) for item in weighted.items} == {("normal", 0.6), ("abnormal", 3.0)}
    # A quarter of eight samples, and of thirteen once "abnormal" stands as often as "normal" does.
    assert [(stage_two(BEYOND["replay"], *more).spec.num_replay) for more in ((), (BEYOND["class_balance"],))] == [2, 3]
    replayed = stage_two(BEYOND["replay"], BEYOND["class_balance"])
    assert len(replayed.items) == 9 and replayed.spec.classes == (*["normal"] * 5, "abnormal", None, None, None)
    assert all(item.answer.startswith("dog ") for item in replayed.items[6:])
    validated = stage_two(BEYOND["validation"])
    assert {item.example.id for item in validated.spec.validation} == {"v6", "v7"}
    assert len(stage_two(BEYOND["probe"]).spec.probe) == 3
    assert (weighted.spec.lineage["class_balance"], replayed.spec.lineage["num_replay"]) == ("loss", 3)


def test_a_share_of_the_rationales_is_held_out_of_stage_one_and_of_replay(labelled_run: OpenRun) -> None:
    share = "training.rationale_validation_share=0.34"
    plain, held = ({each.spec.name: each for each in plan_stages(labelled_run(*more))} for more in ((), (share, BEYOND["replay"])))
    first = held["rb-ft/rationale"]
    out, learned = ({item.example.id for item in items} for items in (first.spec.held_out, first.items))
    assert (len(out), len(learned)) == (2, 4) and out | learned == {item.example.id for item in plain["rb-ft/rationale"].items}
    assert first.spec.lineage["num_held_out_rationales"] == 2 and plain["rb-ft/rationale"].spec.held_out == ()
    second = held["rb-ft/classify"]
    assert len(second.items) == 8 and {item.example.id for item in second.items[6:]} <= learned
    assert second.spec.held_out == () and held["direct-sft-1/classify"].spec.fingerprint == plain["direct-sft-1/classify"].spec.fingerprint


def test_validation_without_a_validation_split_is_refused(open_run: OpenRun) -> None:
    with pytest.raises(DataError, match=r"no labelled video is in the split validation; give it a share"):
        plan_stages(open_run("evaluation.systems=[direct-sft-1]", BEYOND["validation"]))


def test_other_seeds_train_the_same_systems_beside_the_first_on_the_same_videos_and_rationales(labelled_run: OpenRun) -> None:
    runs = labelled_run("training.seeds=[5,6]", "evaluation.systems=[zero-shot,rb-ft]").all_seeds()
    assert [(run.config.seed, run.label) for run in runs] == [(0, "miniature"), (5, "miniature seed 5"), (6, "miniature seed 6")]
    assert [run.config.evaluation.systems for run in runs] == [("zero-shot", "rb-ft"), ("rb-ft",), ("rb-ft",)]
    stages = [plan_stages(run) for run in runs]
    assert len({planned.spec.folder for each in stages for planned in each}) == 6
    assert all(each[0].items == stages[0][0].items and each[1].items == stages[0][1].items for each in stages)
    assert [each[1].spec.seed for each in stages] == [0, 5, 6]
    assert stages[0][1].spec.fingerprint == plan_stages(labelled_run("evaluation.systems=[rb-ft]"))[1].spec.fingerprint
    # One record for all of them, in which each finds its own.
    assert [
        run.stage_folders()["rb-ft", "classify"].endswith(each[1].spec.fingerprint) for run, each in zip(runs, stages, strict=True)
    ] == [True] * 3
    assert {"train/rb-ft/classify", "seed-6/train/rb-ft/classify"} <= set(runs[0].fact("artifacts"))


def test_seeds_share_their_rationales_unless_those_are_drawn(labelled_run: OpenRun) -> None:
    seeds = "training.seeds=[5,6]"
    assert len(distinct_rationales(labelled_run(seeds).all_seeds())) == 1
    assert len(distinct_rationales(labelled_run(seeds, "generation.temperature=0.7").all_seeds())) == 3
    assert distinct_rationales(labelled_run(seeds, "evaluation.systems=[direct-sft-1]").all_seeds()) == []


def test_without_further_seeds_a_run_is_one(open_run: OpenRun) -> None:
    run = open_run()
    assert run.all_seeds() == [run]


def test_the_driver_follows_from_a_stage_that_ended_early_to_the_next(labelled_run: OpenRun, capsys: pytest.CaptureFixture[str]) -> None:
    stages = plan_stages(labelled_run("evaluation.systems=[rb-ft]"))
    usual: dict[str, Any] = {"num_steps": 9, "loss": 0.5, "samples_per_s": 8.25, "data_wait_share": 0.25, "elapsed_s": 3.0, "eta_s": 1.0}
    last: list[dict[str, Any]] = [{"step": 4, "ended_early": True}, {"step": 9, "mfu": 0.4213}]
    for planned, line in zip(stages, last, strict=True):
        Path(planned.spec.folder).mkdir(parents=True)
        (Path(planned.spec.folder) / "log.jsonl").write_text(json.dumps(usual | line) + "\n")
    thread = threading.Thread(target=follow, args=(stages, threading.Event()), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for steps that never come"
    told = capsys.readouterr().out
    assert "rb-ft/rationale: step 4/9, loss 0.500, 8.2 samples/s, 25.00 % of it waiting for data\n" in told
    assert "rb-ft/classify: step 9/9, loss 0.500, 8.2 samples/s, MFU 42.13 %, 25.00 % of it waiting for data\n" in told


@pytest.mark.usefixtures("s3")
def test_a_run_in_a_store_is_trained_in_the_scratch_and_found_in_the_store(open_run: OpenRun, tmp_path: Path) -> None:
    scratch = f"training.scratch={tmp_path}/scratch"
    runs = [open_run("evaluation.systems=[rb-ft]", f"output_dir=s3://runs/{name}", scratch) for name in ("a", "b")]
    stages = []
    for run in runs:
        write_rationales(run, num_bad=0)
        generate([run])
        stages.append(plan_stages(run))
    specs = [planned.spec for of_run in stages for planned in of_run]
    for run, (first, second) in zip(runs, stages, strict=True):
        assert first.spec.store == first.spec.home == run.stage_folders()["rb-ft", "rationale"]
        assert Path(first.spec.folder).is_relative_to(tmp_path / "scratch") and first.spec.folder.endswith(first.spec.fingerprint)
        assert second.spec.model.path == f"{first.spec.store}/final"
    # Where a run lies determines nothing, and two of one name are not trained in one folder.
    assert len({spec.fingerprint for spec in specs}) == 2
    assert len({spec.folder for spec in specs}) == 4
