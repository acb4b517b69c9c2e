"""What CI runs on every other Python: the demonstration's first steps, and going on with them."""

import shutil

import run_helpers


def test_the_first_steps_train_and_a_cut_run_goes_on_with_the_same_ones(tmp_path):
    words = [
        "train", "--gin_file=demo/model.gin", "--gin_file=runs/finetune.gin",
        "--gin.MIXTURE_OR_TASK_NAME='tiny_rte'", "--gin.INITIAL_CHECKPOINT_PATH='tiny_world'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 20, 'targets': 4}", "--gin.KEEP=None",
        "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=1", "--gin.EVAL_NUM_EXAMPLES=8",
        f"--gin.MODEL_DIR='{tmp_path}'",
    ]  # fmt: skip
    run_helpers.succeed(words)
    first, second = run_helpers.losses(tmp_path)
    assert first > second > 0
    answers = run_helpers.json_lines(tmp_path / "inference_eval" / "tiny_rte-000002.jsonl")
    assert len(answers) == 8
    straight = run_helpers.tree(tmp_path)
    (tmp_path / "stage.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint_2")
    done = run_helpers.here(words)
    assert done.status == 0, done.err
    assert "resumes after step 1" in done.out + done.err
    again = run_helpers.tree(tmp_path)
    for name in ("train/metrics.jsonl", "inference_eval/tiny_rte-000002.jsonl", "stage.json"):
        assert again[name] == straight[name]
