"""Languages and scripts: what a task's stated language means for how answers are split into words.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are written without spaces, and Korean
writes several words as one. A metric that splits text at spaces sees one long word there.
"""

import re
from collections.abc import Iterable, Sequence

from promot_t5x.errors import UserError, did_you_mean

# Letters of each script that does not set a space between words.
SCRIPTS = {
    "Han": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "kana": r"\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Hangul": r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Thai, Lao, Khmer, Burmese or Tibetan": (
        r"\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    ),
}
# sacreBLEU's choice for the first three; it has none for the others, and "char" needs no download.
BLEU_TOKENIZERS = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    **dict.fromkeys(("th", "lo", "km", "my", "bo", "dz"), "char"),
}
_ISO_639_1 = {
    "zho": "zh",
    "cmn": "zh",
    "yue": "zh",
    "jpn": "ja",
    "kor": "ko",
    "tha": "th",
    "lao": "lo",
    "khm": "km",
    "mya": "my",
    "bod": "bo",
    "dzo": "dz",
    "eng": "en",
}
_NAMES = {
    "english": "en",
    "chinese": "zh",
    "cantonese": "zh",
    "japanese": "ja",
    "korean": "ko",
    "thai": "th",
    "khmer": "km",
    "burmese": "my",
    "tibetan": "bo",
}
# A target counts where more than this share of its letters is meant; Japanese mixes two scripts.
_SHARE = 0.3


def code(language: str) -> str:
    """Return the language's ISO 639-1 code, or 639-3 where it has no other that matters here.

    **Arguments:**

    - `language`: `zh`, `zh-TW`, FLORES' `zho_Hant`, or an English name of a language that is
      written without spaces.

    **Raises:** `UserError` for anything else.
    """
    lowered = language.strip().lower()
    first = re.split("[-_]", lowered)[0]
    if lowered in _NAMES:
        return _NAMES[lowered]
    if not re.fullmatch("[a-z]{2,3}", first):
        raise UserError(
            f"language = {language!r} is no code of a language such as 'de', 'zh' or 'jpn'."
            + did_you_mean(lowered, _NAMES)
        )
    return _ISO_639_1.get(first, first)


def written_in(texts: Iterable[str], scripts: Sequence[str]) -> int:
    """Count the texts that these scripts, named in `SCRIPTS`, make up to a good part."""
    letters = re.compile(f"[{''.join(SCRIPTS[name] for name in scripts)}]")
    count = 0
    for text in texts:
        whole = sum(letter.isalpha() for letter in text)
        count += len(letters.findall(text)) > _SHARE * max(whole, 1)
    return count


def unsplit(texts: Sequence[str], splits: Sequence[str], remedy: str) -> list[str]:
    """Return a warning where texts are in a script without spaces that is not split into words.

    **Arguments:**

    - `splits`: the scripts that are split into words.
    - `remedy`: what to do about it, in words.
    """
    scripts = [name for name in SCRIPTS if name not in splits]
    found = written_in(texts, scripts) if scripts else 0
    if not found:
        return []
    named = [name for name in scripts if written_in(texts, [name])]
    return [
        f"{found:,} of {len(texts):,} targets are written in {' and '.join(named or scripts)}, "
        f"which the metric does not split into words: {remedy}"
    ]
