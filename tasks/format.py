r"""Choices that the paper leaves open, in one place; a gin file may change each of them.

    from promot_t5x.tasks import format
    format.Format.separator = '\n'
    format.Format.shot_seed = 1

The model carries the format (`models.EncoderDecoderModel.task_format`), so training, validation
and the suite of one run ask alike.
"""

import dataclasses

from promot_t5x.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    r"""How questions are put together and scored where arXiv 2211.00635 does not say.

    **Attributes:**

    - `separator`: between a demonstration and what follows it.
    - `answer_separator`: between a demonstration's question and its answer.
    - `line_break`: what `{br}` in a template becomes. The paper's templates have one before each
      cue (`question:`, `answer:`, `A:`, `One sentence summary:`), where prompts of this style
      often start a new line. T5's vocabularies have no line break, hence the space.
    - `shot_seed`: another seed, other demonstrations.
    - `shot_pool`: demonstrations come from the first so many rows of their split; None takes all.
    - `shot_split`: the split that demonstrations come from; None is the task's own, `train`.
    - `balanced_shots`: draw the demonstrations of a task with labels from its classes in turn.
    - `kept_shots`: when a prompt is too long, so many demonstrations are kept until articles have
      been cut to `short_article_tokens`; 0 drops all of them before any article is cut.
    - `article_tokens`: the longest article, in tokens, whatever the token budget; None cuts only
      what does not fit. The paper cuts at 1024, and so do the files in `gin/suites`.
    - `short_article_tokens`: what articles of demonstrations are cut to when a prompt is too long,
      and what a demonstration must leave to the query's article.
    - `bleu_tokenise`: tokenization of the primary BLEU score, 'intl' or '13a'; both are computed.
    - `rouge_stem`: whether ROUGE compares words without their English endings.
    """

    separator: str = "\n\n"
    answer_separator: str = " "
    line_break: str = " "
    shot_seed: int = 0
    shot_pool: int | None = 10_000
    shot_split: str | None = None
    balanced_shots: bool = False
    kept_shots: int = 1
    article_tokens: int | None = None
    short_article_tokens: int = 384
    bleu_tokenise: str = "intl"
    rouge_stem: bool = False

    def __post_init__(self) -> None:
        for name in ("article_tokens", "short_article_tokens", "shot_pool"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"format.Format.{name} must be at least 1, got {value!r}")
        if self.kept_shots < 0:
            raise UserError(f"format.Format.kept_shots must not be negative: {self.kept_shots!r}")
        if self.bleu_tokenise not in ("intl", "13a"):
            raise UserError(
                f"format.Format.bleu_tokenise must be 'intl' or '13a', got {self.bleu_tokenise!r}"
            )


DEFAULT = Format()
