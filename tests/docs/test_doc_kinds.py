"""Every command that README and docs print is run by a test, or shows what of the reader's own it needs (CONTRIBUTING)."""

from __future__ import annotations

import re

import pytest
from commands import ROOT, Command
from test_doc_commands import ALL

from attn.models.convert import SOURCES

# What a command shows if it needs something that no test has. README and CONTRIBUTING tell the reader the same.
MARKS = {
    "images of your own": r"(=|\s)/(data|fast|other)/|\bimages='?photos",
    "ImageNet, where no data= is said": r"^(torchrun .*|python )train\.py (?!.*\b(data=|--help|--cfg))",
    "COCO or Pascal VOC in data/, where the config is not of digits": r"detection/(train|test)\.py (?!.*digits)",
    "the data set of the package elpv-dataset": r"elpv",
    "a checkpoint of your own": r"\b(best|A|start|dca_se_resnet50)\.pt\b",
    "what you fill in": r"\b(KIND|CONFIG|HOST|NAME)\b",
    "several GPUs or a cluster": r"^torchrun .*--nproc-per-node=[48]|^sbatch",
    "a GPU": r"^scripts/gpu_report\.sh$|-m cuda$",
    "a package index": r"^(uv )?pip install",
    "this repository's CI, which is the command": r"^make test$",
}
# Commands, and the tests that run them, in this form or a smaller one: fewer epochs, images or cells.
RUN = {
    r"make quickstart": "test_evaluation_prints_what_training_printed",
    r"make results|python scripts/results\.py (run|table|figures) digits": "test_results_are_made_and_remade",
    r"python scripts/results\.py list": "test_the_studies_are_listed",
    r"python scripts/results\.py readme": "test_the_readme_gives_the_published_results",
    r"python train\.py (--help|attention=ba --cfg job)": "test_help_and_config_need_no_training",
    r"python train\.py .*data=digits .*-m": "test_a_sweep_keeps_its_cells_apart",
    r"python eval\.py checkpoint=runs/": "test_evaluation_prints_what_training_printed",
    r"python scripts/predict\.py checkpoint=runs/": "test_the_script_names_what_it_cannot_read",
    r"python scripts/export\.py (checkpoint=runs/.* format=onnx)": "test_onnx_and_its_consumer",
    r"python scripts/export\.py --help": "test_help_needs_no_torch",
    r"python scripts/convert\.py --list": "test_the_convertible_networks_are_listed",
    r"python -m attn\.(kernels\.)?build": "test_the_build_says_what_it_did",
    r"python scripts/tables\.py --paper": "test_the_script_prints_json_of_one_table",
    r"python scripts/tables\.py --runs": "test_scores_stand_beside_the_printed_ones_with_their_statistics",
    r"python scripts/analyse\.py (weights )?--help": "test_the_script_itself",
    r"python scripts/analyse\.py cost paper=": "test_accuracy_against_size_of_runs_and_of_a_paper",
    r"python scripts/analyse\.py batch": "test_error_by_batch_size",
    r"python scripts/analyse\.py \w+ checkpoint=runs/": "test_a_command_writes_picture_and_numbers",
    r"python scripts/report\.py": "test_the_script",
    r"python scripts/compare\.py runs$": "test_files_of_another_shape_in_a_run_cost_the_others_nothing",
    r"python scripts/benchmark\.py step": "test_a_step_beside_the_plain_backbones",
    r"python scripts/benchmark\.py module": "test_modules_beside_their_blocks",
    r"scripts/gpu_report\.sh --dry-run": "test_its_commands_are_ones_that_its_tools_take",
    r"python scripts/benchmark\.py input": "test_the_input_beside_torchvisions",
    r"python scripts/benchmark\.py inference": "test_inference_beside_the_plain_backbone",
    r"python scripts/killtest\.py": "test_the_kill_test_kills_and_compares",
    r"python scripts/make_digits_coco\.py": "test_scenes_are_a_function_of_their_arguments",
    r"python detection/train\.py digits_": "test_train_and_test_mask_rcnn_with_ba",
}
SHELL = r"(cd|mkdir|ln|export) "


def run_by(line: str) -> list[str]:
    return [test for pattern, test in RUN.items() if re.match(pattern, line)]


def marks_of(line: str) -> list[str]:
    return [mark for mark, pattern in MARKS.items() if re.search(pattern, line)]


@pytest.mark.parametrize("line", sorted({line for _, line, _ in ALL if not re.match(SHELL, line)}))
def test_a_command_is_run_by_a_test_or_shows_what_it_needs(line: str) -> None:
    assert run_by(line) or marks_of(line), f"name the test that runs it in RUN, or mark it: {line}"


def test_the_tests_that_run_commands_exist() -> None:
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (\w+)", path.read_text(), re.M)
    }
    assert set(RUN.values()) - defined == set()


def test_no_entry_is_left_over() -> None:
    lines = [line for _, line, _ in ALL]
    assert [pattern for pattern in RUN if not any(re.match(pattern, line) for line in lines)] == []
    assert [mark for mark, pattern in MARKS.items() if not any(re.search(pattern, line) for line in lines)] == []


def test_the_studies_are_listed(in_process: Command) -> None:
    done = in_process(["scripts/results.py", "list"])
    assert done.returncode == 0
    assert all(path.stem in done.stdout for path in (ROOT / "configs" / "studies").glob("*.yaml"))


def test_the_convertible_networks_are_listed(in_process: Command) -> None:
    done = in_process(["scripts/convert.py", "--list"])
    assert done.returncode == 0
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [*SOURCES, "timm"]
