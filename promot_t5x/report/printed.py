"""The rows that the ProMoT paper (arXiv 2211.00635) prints, and the configuration that makes each.

Each has the paper's numbers, in percent, the gin files of the run that makes it (`--gin_file`, in
this order) and its row in that run's comparison. No number here was measured with this project.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from promot_t5x.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrintedRow:
    """A row of one of the paper's tables.

    **Attributes:**

    - `table`: what the table is of.
    - `method`: what the paper calls the row.
    - `files`: gin files of the run that makes it.
    - `label`: of the row in the run's comparison, behind the run's own words (`RTE: `).
    - `targets`: score on each fine-tuned task, where the table has it.
    - `shots`: demonstrations before each question of the suite; none in a table without one.
    - `suite`: scores of the suite's tasks, in the order of `tasks.suite.EIGHT`.
    - `mean`: of the suite, as printed ("Norm. Avg.").
    """

    table: str
    method: str
    files: tuple[str, ...]
    label: str
    targets: Mapping[str, float]
    shots: int | None = None
    suite: tuple[float, ...] = ()
    mean: float | None = None

    @property
    def configuration(self) -> str:
        """The name of the run that makes it: of its file in `gin/paper`."""
        return PurePath(self.files[0]).stem

    @property
    def name(self) -> str:
        """What tells the row apart in its table."""
        asked = ", ".join(self.targets) if self.shots is None else f"{self.shots}-shot"
        return f"{self.method}, {asked}"


_LABELS = {
    "standard": "standard fine-tuning",
    "standard + 1-shot": "standard fine-tuning",
    "ProMoT + 1-shot": "ProMoT",
    "joint": "joint tuning",
}
_BOTH_SUITES = "suites/icl_1_and_4shot.gin"


def _supervised(target: str, run: str, scores: Mapping[str, float]) -> list[PrintedRow]:
    """Return the rows of the table of fine-tuned tasks, mT5 XXL."""
    return [
        PrintedRow(
            table="supervised, mT5 XXL",
            method=method,
            files=(f"paper/{run}{'_1shot' if method.endswith('1-shot') else ''}.gin",),
            label=_LABELS.get(method, method),
            targets={target: score},
        )
        for method, score in scores.items()
    ]


def _suite(
    table: str,
    method: str,
    run: str,
    numbers: Sequence[float],
    *,
    targets: Mapping[str, float] | None = None,
    shots: int = 1,
    label: str | None = None,
) -> PrintedRow:
    """Return a row of a table of in-context tasks: eight scores and their mean."""
    return PrintedRow(
        table=table,
        method=method,
        files=(f"paper/{run}.gin", _BOTH_SUITES),
        label=label or _LABELS.get(method, method),
        targets=targets or {},
        shots=shots,
        suite=tuple(numbers[:-1]),
        mean=numbers[-1],
    )


_RTE, _ENFR = "fine-tuned on RTE, mT5 XXL", "fine-tuned on En-Fr, mT5 XXL"
_BOTH, _ABLATIONS = "fine-tuned on RTE and En-Fr, mT5 XXL", "ablations on RTE, mT5 XXL"
_LORA, _T5 = "LoRA as stage one, En-Fr, mT5 XXL", "fine-tuned on RTE, T5.1.1 XXL"
_ONE_SHOT = "ProMoT + 1-shot"


def _pair(rte: float, enfr: float) -> dict[str, float]:
    return {"rte": rte, "wmt14_enfr": enfr}


# fmt: off
ROWS: tuple[PrintedRow, ...] = (
    *_supervised("rte", "mt5_xxl_rte", {
        "pretrained": 47.65, "prompt tuning": 91.34, "standard": 92.06, "ProMoT": 92.78,
        _ONE_SHOT: 93.86}),
    *_supervised("wmt14_enfr", "mt5_xxl_enfr", {
        "pretrained": 1.98, "prompt tuning": 39.28, "standard": 41.80, "ProMoT": 41.30,
        _ONE_SHOT: 41.19}),
    *_supervised("snli", "mt5_xxl_snli", {
        "pretrained": 1.32, "prompt tuning": 88.53, "standard": 88.91, "ProMoT": 89.62}),
    *_supervised("openbookqa", "mt5_xxl_openbookqa", {
        "pretrained": 0.00, "prompt tuning": 73.60, "standard": 77.2, "ProMoT": 81.6}),
    _suite(_RTE, "pretrained", "mt5_xxl_rte",
           (46.43, 49.69, 17.58, 9.70, 3.97, 1.82, 6.41, 4.59, 17.52)),
    _suite(_RTE, "pretrained", "mt5_xxl_rte",
           (51.79, 49.69, 19.02, 13.04, 8.83, 3.92, 2.35, 1.33, 18.75), shots=4),
    _suite(_RTE, "standard", "mt5_xxl_rte",
           (73.21, 50.00, 0.15, 0.05, 0, 0, 0, 0, 15.43)),
    _suite(_RTE, "standard", "mt5_xxl_rte",
           (82.14, 50.16, 0.11, 0.05, 0, 0, 0, 0, 16.56), shots=4),
    _suite(_RTE, "ProMoT", "mt5_xxl_rte",
           (66.07, 51.41, 17.64, 11.07, 2.02, 0.70, 7.02, 4.84, 20.10)),
    _suite(_RTE, "ProMoT", "mt5_xxl_rte",
           (67.86, 53.61, 18.66, 13.19, 3.69, 0.96, 7.01, 4.90, 21.24), shots=4),
    _suite(_RTE, _ONE_SHOT, "mt5_xxl_rte_1shot",
           (83.93, 51.25, 17.82, 10.14, 2.26, 0.87, 6.94, 4.87, 22.26)),
    _suite(_RTE, _ONE_SHOT, "mt5_xxl_rte_1shot",
           (82.14, 50.63, 19.62, 12.11, 4.89, 1.87, 3.93, 3.43, 22.33), shots=4),
    _suite(_ENFR, "standard", "mt5_xxl_enfr",
           (16.07, 50.63, 3.20, 0.89, 0.81, 1.53, 0.05, 0.03, 9.15)),
    _suite(_ENFR, "standard", "mt5_xxl_enfr",
           (32.14, 49.06, 3.15, 6.15, 0.18, 0.42, 1.86, 0.43, 11.67), shots=4),
    _suite(_ENFR, "ProMoT", "mt5_xxl_enfr",
           (41.07, 50.16, 13.63, 9.40, 15.52, 18.54, 1.49, 1.14, 18.87)),
    _suite(_ENFR, "ProMoT", "mt5_xxl_enfr",
           (57.14, 50.31, 15.20, 7.92, 15.55, 17.80, 0.65, 0.52, 20.64), shots=4),
    _suite(_ENFR, _ONE_SHOT, "mt5_xxl_enfr_1shot",
           (41.07, 49.84, 16.93, 10.14, 16.14, 17.57, 3.41, 4.22, 19.91)),
    _suite(_ENFR, _ONE_SHOT, "mt5_xxl_enfr_1shot",
           (53.57, 50.63, 18.19, 12.01, 15.63, 16.81, 4.36, 4.73, 21.99), shots=4),
    _suite(_BOTH, "standard", "mt5_xxl_multitask",
           (80.36, 51.10, 15.76, 9.70, 0.88, 1.52, 0.44, 0.72, 20.06), targets=_pair(90.25, 41.34)),
    _suite(_BOTH, "ProMoT", "mt5_xxl_multitask",
           (83.93, 51.41, 16.99, 10.04, 18.83, 18.41, 4.50, 2.89, 25.88),
           targets=_pair(91.34, 40.73)),
    _suite(_BOTH, "standard + 1-shot", "mt5_xxl_multitask_1shot",
           (87.50, 53.29, 16.53, 9.40, 2.50, 5.62, 1.82, 4.33, 22.62),
           targets=_pair(91.70, 40.87)),
    _suite(_BOTH, _ONE_SHOT, "mt5_xxl_multitask_1shot",
           (85.71, 52.04, 17.18, 10.38, 17.57, 18.57, 4.32, 3.56, 26.17),
           targets=_pair(93.14, 40.55)),
    _suite("RTE, then En-Fr, mT5 XXL (first version)", "ProMoT", "mt5_xxl_sequential",
           (82.14, 51.72, 12.91, 8.66, 17.03, 19.66, 2.93, 2.26, 24.66),
           targets=_pair(92.42, 40.88), label="ProMoT, both in turn"),
    _suite(_ABLATIONS, "joint", "mt5_xxl_rte_joint",
           (83.93, 50.47, 0.75, 0.64, 0, 0, 0, 0, 16.97), targets={"rte": 90.97}),
    _suite(_ABLATIONS, "standard + 1-shot", "mt5_xxl_rte_1shot",
           (78.57, 51.41, 0.03, 0.00, 0, 0, 0, 0, 16.25), targets={"rte": 90.97}),
    _suite(_ABLATIONS, "fixed random prompt", "mt5_xxl_rte_fixed_random_prompt",
           (83.93, 51.72, 0.83, 0.30, 0, 0, 0, 0, 17.10), targets={"rte": 92.06}),
    _suite(_LORA, "r = 2", "mt5_xxl_enfr_lora_r2",
           (26.78, 53.13, 4.98, 3.30, 1.23, 2.06, 0.17, 0.64, 11.54),
           targets={"wmt14_enfr": 39.09}, label="ProMoT with LoRA of rank 2"),
    _suite(_LORA, "r = 4", "mt5_xxl_enfr_lora_r4",
           (23.21, 53.25, 5.19, 3.84, 1.87, 2.89, 0.35, 0.57, 11.40),
           targets={"wmt14_enfr": 39.97}, label="ProMoT with LoRA of rank 4"),
    _suite(_T5, "pretrained", "t5_1_1_xxl_rte",
           (55.36, 49.84, 34.15, 16.04, 0.13, 0.06, 1.26, 1.12, 19.75)),
    _suite(_T5, "standard", "t5_1_1_xxl_rte",
           (62.50, 50.00, 0.02, 0, 0, 0, 0, 0, 14.07), targets={"rte": 93.5}),
    _suite(_T5, "ProMoT", "t5_1_1_xxl_rte",
           (73.21, 50.78, 33.86, 15.95, 0.02, 0.01, 1.79, 2.25, 22.23), targets={"rte": 93.14}),
)
# fmt: on

# The paper has other models too; their numbers are not here.
WITHOUT_NUMBERS = (
    *(f"{model}_{task}" for model in ("mt5_xl", "flan_t5_xxl") for task in ("rte", "enfr")),
    "t5_1_1_xxl_enfr",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrintedFigure:
    """A figure of the paper.

    **Attributes:**

    - `number`: or numbers.
    - `about`: what it shows.
    - `configuration`: the run that makes it: the name of a file in `gin/paper/figures`.
    - `flags`: of `promot-t5x report`, which draws it.
    - `drawn`: the name of the figure in a report's `figures/`.
    """

    number: str
    about: str
    configuration: str
    flags: str = ""
    drawn: str


_LONG = "--group classification=cb,wic --group translation=wmt16_ende,wmt16_enro"
FIGURES = (
    PrintedFigure(
        number="1",
        about="loss of in-context ability by step",
        configuration="early_training",
        drawn="learning_by_task",
    ),
    PrintedFigure(
        number="2",
        about="answers in the target's format by step",
        configuration="early_training",
        drawn="format_by_task",
    ),
    PrintedFigure(
        number="3, 7",
        about="gradient alignment",
        configuration="early_training",
        drawn="gradient_alignment",
    ),
    PrintedFigure(
        number="5",
        about="En-Fr against classification, by checkpoint",
        configuration="long_training",
        flags=_LONG,
        drawn="trade_off_classification",
    ),
    PrintedFigure(
        number="6",
        about="En-Fr against other language pairs, by checkpoint",
        configuration="long_training",
        flags=_LONG,
        drawn="trade_off_translation",
    ),
)


def configurations() -> dict[str, tuple[str, ...]]:
    """Return the gin files of every run of the paper, by the run's name.

    A run that makes rows of both suites asks both, which also makes its rows of one of them.
    """
    found: dict[str, tuple[str, ...]] = {}
    for row in ROWS:
        found[row.configuration] = max(found.get(row.configuration, ()), row.files, key=len)
    return found | {name: (f"paper/{name}.gin", _BOTH_SUITES) for name in WITHOUT_NUMBERS}


def files_of(name: str) -> tuple[str, ...]:
    """Return the gin files of a run of the paper; raise `UserError` where there is none.

    **Arguments:**

    - `name`: of a configuration that makes rows, or figures.
    """
    known = configurations() | {
        figure.configuration: (f"paper/figures/{figure.configuration}.gin",) for figure in FIGURES
    }
    if name not in known:
        raise UserError(
            f"the paper has no configuration {name!r}.{did_you_mean(name, known)} There are: "
            f"{', '.join(known)}."
        )
    return known[name]
