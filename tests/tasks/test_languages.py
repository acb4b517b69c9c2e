"""Scores of languages that are written without spaces, against the reference libraries."""

import json

import numpy as np
import pytest
import sacrebleu

from promot_t5x.errors import UserError
from promot_t5x.tasks import (
    Bleu,
    Chrf,
    Rouge,
    exact_match,
    jsonl,
    languages,
    metrics,
    squad,
    text_task,
    trivia_qa,
)

CHINESE = ["今天天气很好，我们去公园散步。", "他昨天买了一本关于历史的书。", "北京是中国的首都。"]
CHINESE_SAID = ["今天天气很好，我们去公园玩。", "他昨天买了一本历史书。", "北京是中国的首都。"]
JAPANESE = ["今日は天気がいいので、公園を散歩しました。", "彼は昨日、歴史の本を買いました。"]
JAPANESE_SAID = ["今日は天気がいいので、公園に行きました。", "彼は昨日、歴史の本を買いました。"]
KOREAN = ["오늘은 날씨가 좋아서 공원을 산책했습니다.", "그는 어제 역사책을 샀습니다."]
KOREAN_SAID = ["오늘은 날씨가 좋아서 공원에 갔습니다.", "그는 어제 역사책을 샀습니다."]
THAI = ["วันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะ", "เขาซื้อหนังสือประวัติศาสตร์เมื่อวานนี้"]
THAI_SAID = ["วันนี้อากาศดีมากเราไปเที่ยวที่สวนสาธารณะ", "เขาซื้อหนังสือประวัติศาสตร์เมื่อวาน"]
GERMAN = ["Der Hund läuft über die große Straße.", "Wir trinken heute Kaffee (schwarz)."]
GERMAN_SAID = ["Der Hund geht über die große Straße.", "Wir trinken Kaffee (schwarz)."]


@pytest.mark.parametrize(
    ("tokenise", "targets", "said"),
    [
        ("zh", CHINESE, CHINESE_SAID),
        ("char", THAI, THAI_SAID),
        ("char", CHINESE, CHINESE_SAID),
        ("none", GERMAN, GERMAN_SAID),
        ("ja-mecab", JAPANESE, JAPANESE_SAID),
        ("ko-mecab", KOREAN, KOREAN_SAID),
    ],
)
def test_bleu_is_sacrebleus_with_each_of_its_tokenizers(tokenise, targets, said):
    metric = Bleu(tokenise)
    theirs = sacrebleu.corpus_bleu(said, [targets], tokenize=tokenise)
    assert metric(targets, said) == {"bleu": pytest.approx(theirs.score, rel=1e-12)}
    assert metric(targets, targets)["bleu"] == pytest.approx(100.0)
    statistics = metric.example_statistics(targets, said)
    assert metric.value(metrics.total(statistics)) == metric(targets, said)
    scorer = sacrebleu.BLEU(tokenize=tokenise, effective_order=True)
    alone = [scorer.sentence_score(s, [t]).score for s, t in zip(said, targets, strict=True)]
    assert metric.example_score(statistics) == pytest.approx(alone)
    assert f"tok:{tokenise}" in metric.signatures()["bleu"]
    assert metrics.from_spec(json.loads(json.dumps(metric.spec()))) == metric
    assert not Bleu("char").warnings(targets)


def test_the_numbers_that_a_tokenizer_of_the_language_makes():
    by_language = Bleu("zh")(CHINESE, CHINESE_SAID)["bleu"]
    assert by_language == pytest.approx(74.9351127795316)
    assert Bleu()(CHINESE, CHINESE_SAID)["bleu"] < 40


@pytest.mark.parametrize("word_order", [0, 1, 2])
@pytest.mark.parametrize(
    ("targets", "said"), [(CHINESE, CHINESE_SAID), (GERMAN, GERMAN_SAID), (THAI, ["", "x"])]
)
def test_chrf_is_sacrebleus(word_order, targets, said):
    metric, scorer = Chrf(word_order), sacrebleu.CHRF(word_order=word_order)
    (name,) = metric.scores
    assert name == "chrf" + word_order * "+"
    theirs = scorer.corpus_score(said, [targets])
    assert metric(targets, said)[name] == pytest.approx(theirs.score, abs=1e-9)
    assert metric(targets, targets)[name] == 100.0
    alone = [
        sacrebleu.CHRF(word_order=word_order).sentence_score(s, [t]).score
        for s, t in zip(said, targets, strict=True)
    ]
    statistics = metric.example_statistics(targets, said)
    assert metric.example_score(statistics) == pytest.approx(alone, abs=1e-9)
    assert metric.signatures()[name] == str(scorer.get_signature())
    assert metrics.from_spec(json.loads(json.dumps(metric.spec()))) == metric
    # Of several references the one with the best F counts, and all samples follow from sums.
    several = [[*other, target] for target, other in zip(targets, [["a"], []] * 2, strict=False)]
    assert metric(several, said)[name] == pytest.approx(theirs.score, abs=1e-9)
    resampled = metric.value(np.array([[2.0, *[0] * (len(said) - 1)]]) @ statistics)[name]
    assert resampled == pytest.approx([alone[0]], abs=1e-9)


def test_chrf_takes_no_other_order():
    with pytest.raises(ValueError, match="must be 0, 1 or 2"):
        Chrf(3)


@pytest.mark.parametrize(
    ("language", "bleu"),
    [
        ("zh", "zh"),
        ("zho_Hant", "zh"),
        ("Chinese", "zh"),
        ("zh-TW", "zh"),
        ("ja", "ja-mecab"),
        ("kor_Hang", "ko-mecab"),
        ("th", "char"),
        ("de", "intl"),
        (None, "intl"),
    ],
)
def test_a_stated_language_chooses_the_tokenizer(language, bleu):
    definition = text_task(
        name="own_language",
        source=jsonl("absent.jsonl"),
        inputs="{x}",
        target="{y}",
        metrics=[Bleu(), Rouge(), squad, trivia_qa, Bleu("13a"), Chrf()],
        language=language,
    )
    unicode = "spaces" if language is None else "unicode"
    assert definition.metrics == (
        Bleu(bleu),
        Rouge(words="rouge_score" if language is None else "unicode"),
        exact_match.ShortAnswers("squad", words=unicode),
        exact_match.ShortAnswers("trivia_qa", words=unicode),
        Bleu("13a"),
        Chrf(),
    )


def test_a_language_that_is_none_is_refused():
    with pytest.raises(UserError, match="language = 'Chinesse' is no code .* Did you mean 'chin"):
        languages.code("Chinesse")


@pytest.mark.parametrize(
    ("metric", "targets", "scripts"),
    [
        (Bleu(), CHINESE, "3 of 3 targets are written in Han,"),
        (Bleu(), JAPANESE, "2 of 2 targets are written in Han and kana,"),
        (Bleu("zh"), JAPANESE, "written in kana,"),
        (Bleu("13a"), KOREAN, "written in Hangul,"),
        (Bleu(), THAI, "written in Thai, Lao, Khmer, Burmese or Tibetan,"),
        (Bleu("ko-mecab"), THAI, "written in Thai,"),
        (Bleu("zh"), CHINESE, None),
        (Bleu(), GERMAN, None),
        (squad, [CHINESE, ["Beijing"]], "3 of 4 targets are written in Han,"),
        (squad, KOREAN, None),
        (Rouge(), THAI, "2 of 2 targets are written in letters other than a to z"),
        (Rouge(), ["большой дом", "house"], "1 of 2 targets"),
        (Rouge(words="unicode"), THAI, None),
        (Rouge(), GERMAN, None),
        (Chrf(), THAI, None),
    ],
)
def test_targets_that_are_not_split_into_words_are_warned_of(metric, targets, scripts):
    warnings = metric.warnings(targets)
    if scripts is None:
        assert warnings == []
    else:
        assert len(warnings) == 1
        assert scripts in warnings[0]


def test_f1_of_short_answers_in_any_script():
    f1 = exact_match.ShortAnswers("squad", words="unicode")
    # Two of three letters are shared: 2 * 2 / (3 + 2).
    assert f1(["北京市"], ["北京。"]) == {"exact_match": 0.0, "f1": pytest.approx(80.0)}
    assert f1(["北京"], ["「北京」"]) == {"exact_match": 100.0, "f1": 100.0}
    assert f1(["The Beatles-Band"], ["beatles band"]) == squad(
        ["The Beatles-Band"], ["beatles band"]
    )
    assert squad(["北京市"], ["北京。"])["f1"] == 0.0
    assert metrics.from_spec({"metric": "short_answers", "normalisation": "squad"}) == squad


def test_rouge_1_of_chinese_words():
    # "今天很好" and "今天好": three of four letters and of three.
    assert Rouge(words="unicode")(["今天很好"], ["今天好"])["rouge1"] == pytest.approx(600 / 7)


def test_a_tokenizer_that_is_not_there_is_refused_with_what_to_do(monkeypatch, tmp_path):
    from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_spm

    def no_network(*arguments):
        raise OSError("no route to host")

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "download_file", no_network)
    for name in ("flores200", "spm"):
        with pytest.raises(UserError, match="'flores200'|'spm'.* no route to host .*models"):
            Bleu(name).check_ready()
    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    with pytest.raises(UserError, match=r"'ja-mecab' .*pip install sacrebleu\[ja\]"):
        Bleu("ja-mecab").check_ready()
    Bleu("zh").check_ready()
