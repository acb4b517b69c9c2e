"""The parts of `docs/configuration.md` that are made from the gin files and the decoding classes.

    python -m tools.configuration_page docs/configuration.md

writes them between their marks, `<!-- name -->` and `<!-- end -->`.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from promot_t5x import config, decoding
from promot_t5x.config import comments

FILES = (
    "runs/stage.gin",
    "runs/finetune.gin",
    "runs/prompt_settings.gin",
    "runs/lora_settings.gin",
    "runs/promot.gin",
    "runs/held_back.gin",
    "runs/multitask.gin",
    "runs/sequential.gin",
    "runs/rivals.gin",
    "runs/eval.gin",
    "runs/infer.gin",
    "runs/mesh.gin",
    "models/model.gin",
    "models/encoder_decoder.gin",
    "models/decoder_only.gin",
    "prompts/prompt.gin",
    "prompts/sampled_vocab.gin",
    "prompts/class_labels.gin",
    "prompts/embedded_text.gin",
    "prompts/uniform.gin",
    "prompts/from_file.gin",
    "suites/icl_1shot.gin",
    "analyses/gradient_alignment.gin",
)
METHODS = (
    decoding.Greedy,
    decoding.BeamSearch,
    decoding.Sampling,
    decoding.RankClassification,
    decoding.Likelihood,
)


def parts() -> dict[str, str]:
    """Return each generated part by the name of its mark."""
    return {"macros": macros(), "decoding": methods()}


def macros() -> str:
    """Return a table for each gin file: its macros, their defaults, their meaning."""
    sections = []
    for name in FILES:
        rows = [
            f"| `{each.name}` | {_default(each.default)} | {_escaped(each.meaning)} |"
            for each in comments.read(config.gin_root() / name)
        ]
        sections.append(
            "\n".join([f"### `{name}`\n", "| macro | default | meaning |", _RULE, *rows])
        )
    return "\n\n".join(sections)


def methods() -> str:
    """Return a table for each class that DECODING takes: its fields, defaults and meaning."""
    sections = []
    for method in METHODS:
        text = method.__doc__ or ""
        meanings = {
            name: " ".join(meaning.split())
            for names, meaning in re.findall(
                r"- ((?:`\w+`(?:, )?)+): (.*?)(?=\n +- |\n\n|\Z)", text, re.S
            )
            for name in re.findall(r"\w+", names)
        }
        rows = [
            f"| `{field.name}` | `{field.default!r}` | {_escaped(meanings.get(field.name, ''))} |"
            for field in dataclasses.fields(method)
        ]
        table = "\n".join(["| field | default | meaning |", _RULE, *rows]) if rows else "No fields."
        summary = " ".join(text.split("\n\n")[0].split())
        sections.append(f"### `@decoding.{method.__name__}()`\n\n{summary}\n\n{table}")
    return "\n\n".join(sections)


_RULE = "| --- | --- | --- |"


def _default(value: str) -> str:
    return "required" if value == "%gin.REQUIRED" else f"`{value}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def rewritten(page: str) -> str:
    """Return the page with every generated part made anew."""
    for name, text in parts().items():
        start, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        before, _, rest = page.partition(start)
        page = f"{before}{start}{text}{end}{rest.partition(end)[2]}"
    return page


def main(words: Sequence[str]) -> None:
    """Rewrite the page at the path given."""
    (path,) = map(Path, words)
    path.write_text(rewritten(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
