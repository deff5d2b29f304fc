"""Pre-tokenizers: how byte-level BPE vocabularies cut text into words before merging.

The names (``tokenizer.ggml.pre``) and the patterns are those of ``src/llama-vocab.cpp`` in
llama.cpp, our reference: where it simplifies a pattern of the model's authors, so do we.
Each pattern in turn cuts the pieces that the one before it left; what no pattern matches stays a
piece of its own.

The classes are those of the Unicode version of whoever matches. Of all code points only the 80
digits new in Unicode 16 make a difference: llama.cpp does not yet count them as digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PreTokenizer:
    """Patterns in Oniguruma's syntax, and two habits of the family."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token needs no merging
    add_bos: bool = False  # unless the file states it
    raw: bool = False  # the vocabulary has UTF-8 and ▁ for a space, as SentencePiece has it

    def build(self) -> Any:
        """It as a pre-tokenizer of the library ``tokenizers``."""
        import tokenizers
        from tokenizers import pre_tokenizers

        return pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in self.patterns]
            + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)] * (not self.raw)
        )


# Pieces that the patterns share. The contraction is the ASCII-only "(?i:…)" that llama.cpp has.
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_CAPITALS = r"(?:(?=\p{L})[^a-z])"
_SMALLS = r"(?:(?=\p{L})[^A-Z])"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALLS}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALLS}*",
)
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# llama.cpp reads white space as no member of these ranges, though some lies within them.
_EAST_ASIAN = "(?:(?!\\s)[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff])+"
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_LATIN_TO_DESERET = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
    rf"|{_WORD}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_PUNCTUATED_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
# llama.cpp does not tell cases apart here, and cuts numbers with what is before them.
_LETTERS = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?"
_THOUSANDS = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_HALVED_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_DEEPSEEK_V3 = PreTokenizer((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK_WORDS))

_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((_LLAMA3,))),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), ignore_merges=True)),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        PreTokenizer((_QWEN2,)),
    ),
    ("qwen35", PreTokenizer((_QWEN35,))),
    (
        "gpt-2 phi-2 gigachat a.x-4.0 mellum mpt olmo jais trillion granite-docling exaone4 jina-es jina-de "
        "jina-v2-es jina-v2-de modern-bert jina-v1-en jina-v2-code roberta-bpe",
        PreTokenizer((_GPT2,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        _DIGITS_THEN_GPT2,
    ),
    ("tekken", PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_LATIN_TO_DESERET}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
                r"\s+$",
                _EAST_ASIAN,
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK_V3),
    (
        "falcon",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((_BAILING,))),
    ("seed-coder", PreTokenizer((_SEED,))),
    ("laguna", PreTokenizer((r"[^\n]+|[\n]+", _QWEN2))),
    ("ufakzeka", PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}",))),
    (
        "jais-2",
        PreTokenizer(
            (
                rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+|{_HALVED_SPACES}"
                r"|\s{1,2}(?!\S)|\s{1}",
            )
        ),
    ),
    (
        "exaone-moe",
        PreTokenizer(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "spark2_5",
        PreTokenizer(
            (
                r"\p{N}{1,3}",
                _HAN_KANA,
                _PUNCTUATED_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]"
                r"|\s+(?!\S)|\s+",
                r"\p{N}",
            )
        ),
    ),
    (
        "youtu",
        PreTokenizer(
            (
                "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
                "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                rf"{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
            ),
            ignore_merges=True,
        ),
    ),
    (
        "tiny_aya cohere2moe",
        PreTokenizer(
            (
                _THOUSANDS,
                rf"{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
            )
        ),
    ),
    ("superbpe", PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    (
        "afmoe",
        PreTokenizer(
            (
                _THOUSANDS,
                "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ud7ff\ue000-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
                "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"
                "\uac00-\ud7af\u1100-\u11ff]+",
                _DEEPSEEK_WORDS,
            )
        ),
    ),
    (
        "kimi-k2",
        PreTokenizer(
            (
                rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?(?:(?!\p{{Han}})\p{{L}})+{_CONTRACTION}?|\p{{N}}{{1,3}}"
                rf"|{_SYMBOLS}|{_SPACES}",
            )
        ),
    ),
    (
        "granite-embed-multi-97m",
        PreTokenizer(
            (
                r"[^\r\n\p{L}\p{N}]?(?:(?=[\p{L}\p{M}])[^a-z])*(?:(?=[\p{L}\p{M}])[^A-Z])+"
                + _CONTRACTION
                + r"?|[^\r\n\p{L}\p{N}]?(?:(?=[\p{L}\p{M}])[^a-z])+(?:(?=[\p{L}\p{M}])[^A-Z])*"
                + rf"{_CONTRACTION}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
            ),
            ignore_merges=True,
        ),
    ),
    ("sarvam-moe", PreTokenizer((r"[^\n]+|[\n]+",), raw=True)),
    # llama.cpp ignores merges only for newlines; a line that is a token merges to it anyway.
    (
        "gemma4 granite-embed-multi-311m",
        PreTokenizer((r"[^\n]+|[\n]+",), ignore_merges=True, raw=True),
    ),
    (
        "minicpm5",
        PreTokenizer(
            (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_SPACES}"),
            ignore_merges=True,
        ),
    ),
)

PRE_TOKENIZERS = {name: family for names, family in _FAMILIES for name in names.split()}

# The authors' own patterns where llama.cpp's are so much simpler that they cut letters of some
# scripts otherwise.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_AUTHORS_CASED = tuple(
    rf"[^\r\n\p{{L}}\p{{N}}]?{word}" for word in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*")
)
_AUTHORS_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_AUTHORS = {
    "tekken": PreTokenizer((rf"{'|'.join(_AUTHORS_CASED)}|\p{{N}}|{_AUTHORS_REST}",), True),
    "gpt-4o": PreTokenizer(
        (
            "|".join(word + _CONTRACTION + "?" for word in _AUTHORS_CASED)
            + rf"|\p{{N}}{{1,3}}|{_AUTHORS_REST}",
        )
    ),
}

PLAIN_PROBE = """\
def main(argc: int):  # It's 3.14159, 1234567 or 0x7fff; they'LL say I'VE, we'd, IT'S.\r
    return  "HelloWorld_fooBar/XMLHttp"[2:10] + 'a' != ~b && $x ^= {y|z}; `ls`\t\t<p>\n\n\n
\t  naïve café, straße: 9€ (½ of ²), 你好，世界。ひらがなとカタカナ 한국어 привет мир שלום   !!! ...
http://a.b/c?d=e&f=%20 #tag @me /*\n*/ //\n  \n x=  1+2;100,000 <|im|> $5+6=7~|8 --- *** ===\r\n
"""
"""Text that the families of pre-tokenizers cut differently, but the authors' patterns and llama.cpp's
alike."""
_PROBE = (
    PLAIN_PROBE
    + " Ankara'daki नमस्ते दुनिया e\u0301 ١٢٣٤ \u3000a\u00a0b\u2028c ǅ ƻa ܐܒ \u0964x Ⅻ 𐐀 “q”·"
)


def family_of(pre_tokenizer: Any, ignore_merges: bool) -> str | None:
    """The family that cuts text as a pre-tokenizer of the library ``tokenizers`` does, if any."""
    pieces = pre_tokenizer.pre_tokenize_str(_PROBE)
    families = [*PRE_TOKENIZERS.items(), *_AUTHORS.items()]
    return next(
        (
            name
            for name, family in families
            if family.ignore_merges == ignore_merges
            and family.build().pre_tokenize_str(_PROBE) == pieces
        ),
        None,
    )
