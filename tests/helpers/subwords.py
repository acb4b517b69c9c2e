"""Small subword vocabularies, trained on the sample text: the fixtures `subwords`, `vocabulary`."""

import json

import pytest
from real_rows import SAMPLES

FILES = ("super_glue_rte", "super_glue_cb", "xsum")


def train(prefix, pieces=2000, files=FILES, **options) -> str:
    """Train so many pieces; the path of the model."""
    import sentencepiece

    lines = [line for f in files for line in (SAMPLES / f"{f}.jsonl").read_text().splitlines()]
    texts = [t for line in lines for t in json.loads(line).values() if isinstance(t, str)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in texts if " " in text]),
        model_prefix=str(prefix),
        vocab_size=pieces,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        max_sentence_length=20_000,
        minloglevel=2,
        **options,
    )
    return f"{prefix}.model"


@pytest.fixture(scope="session")
def subwords(tmp_path_factory):
    """Its sentinels are pieces of the model itself, as mT5's are."""
    if not SAMPLES.exists():
        pytest.skip("sample rows are not beside this checkout")
    import seqio

    symbols = [f"▁<extra_id_{number}>" for number in reversed(range(100))]
    path = train(tmp_path_factory.mktemp("subwords") / "own", user_defined_symbols=symbols)
    return seqio.SentencePieceVocabulary(path)


@pytest.fixture(scope="module")
def vocabulary(real_rows, tmp_path_factory):
    """4,000 pieces without sentinels, for how many tokens real text takes."""
    import seqio

    path = train(tmp_path_factory.mktemp("vocabulary") / "subwords", 4000, (*FILES, "snli"))
    return seqio.SentencePieceVocabulary(path)
