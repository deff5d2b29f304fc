"""Texts on which tokenizers tend to disagree. Written for these tests."""

from __future__ import annotations

import random

CORPUS = {
    "empty": "",
    "one space": " ",
    "prose": "The quick brown fox doesn't care; it's 5 o'clock, and THEY'LL say we've won. I'm in!",
    "python": 'def área(r: float) -> float:\n    """π·r²"""\n\treturn 3.14159 * r**2  # ≈\n\n\n',
    "c": '#include <stdio.h>\r\nint main(void){\r\n\tprintf("%d\\n", 0x7fff & ~1);\r\n\treturn 0;\r\n}',
    "json": '{"a": [1, 2.50e-10, null, true], "b": {"c": "\\u00e9\\n"}, "d": ""}',
    "html": "<p class='x'>a &amp; b</p><br/><s>old</s> <b>new</b>\n<table><tr><td>1</td></tr></table>",
    "shell": 'for f in *.txt; do mv -- "$f" "${f%.txt}.md" && echo $((i++)); done 2>/dev/null | wc -l',
    "markdown": "# Title\n\n- [x] *done*\n- [ ] `code` **bold**\n\n```sh\n$ ls -la\n```\n\n---\n> quote",
    "camel": "parseHTTPResponse_toJSON2XML getURLFor__init__ SCREAMING_SNAKE kebab-case a.b.c::d->e",
    "latin": "Ça coûte 9,99 € à Zürich; naïve façade, Ærøskøbing, Łódź, İstanbul, ſtraße, Ǆ ǅ ǆ.",
    "greek": "Ο ταχύς σκύλος πηδά πάνω από τον τεμπέλη· Ἀθῆναι, ΆΈΉΊΌΎΏ.",
    "cyrillic": "Съешь ещё этих мягких французских булок. Їжак ґанок, Ўзбекистон.",
    "armenian and georgian": "Ողջույն աշխարհ։ გამარჯობა მსოფლიო, ႠႡႢ",
    "hebrew": "שָׁלוֹם עוֹלָם, זה מבחן 123.",
    "arabic": "مرحبًا بالعالم، هذا اختبارٌ رقم ٤٥٦۔ \u202bמ\u202c ﷺ",
    "devanagari": "नमस्ते दुनिया, यह १२३ परीक्षा है। क्षत्रिय ज्ञान",
    "tamil and bengali": "வணக்கம் உலகம் ௧௨௩ — ওহে বিশ্ব ১২৩",
    "thai": "สวัสดีชาวโลก นี่คือการทดสอบ ๑๒๓",
    "chinese": "你好，世界！這是一個測試。𠀀𠁐𪚥 2024年１２月",
    "japanese": "こんにちは世界。カタカナｶﾀｶﾅ、漢字と「引用」…ー々〆",
    "korean": "안녕하세요 세계! 한글과 ㄱㄴㄷ 조합 각",
    "ethiopic and cherokee": "ሰላም ልዑል ᎣᏏᏲ ᏣᎳᎩ ꭰꭱ",
    "emoji": "👍👍🏽 👩🏽‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇯🇵🇺 ❤️❤ 1️⃣ #️⃣ ☺︎ 🧑🏿‍🤝‍🧑🏻 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "joiners": "a\u200db\u200cc\u200bd\u2060e\ufefff \u00adg\u034fh",
    "combining": "e\u0301 n\u0303 o\u0308\u0304 q\u0307\u0323 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢ fi\u0301n",
    "symbols": "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ∧ x≠½ ⇒ ∑ₙ²√∞ ™©®§¶ €£¥₿ ←↑→↓ ■□▪ ♠♣♥♦ ⅷⅣ ①② ㎏ ﬁ",
    "digits": "1 12 123 1234 12345 123456 1234567890123456789012345678901234567890 0x1F 1e-9 1,000,000.00",
    "digits of other scripts": "٠١٢٣٤٥٦٧٨٩ ०१२३ ０１２３ 𝟘𝟙𝟚 ²³¹ ½¾ Ⅻ 〇一二三",
    "repeats": "aaaaaaaaaaaaaaaaaaaaa hahahahahaha ........... ======= -----|----- !!!!??? ____ 0000000",
    "spaces": "a b  c   d    e     f" + " " * 7 + "g" + " " * 16 + "h" + " " * 21 + "i" + " " * 100,
    "tabs": "\ta\t\tb\t\t\tc \t d\t \te" + "\t" * 33 + "f",
    "newlines": "a\nb\n\nc\n\n\nd\r\ne\r\n\r\nf\rg\r\rh\n \n  \n\ti" + "\n" * 40 + "j \n",
    "wide spaces": "a\u00a0b\u3000c\u3000\u3000d\u2003e\u2009f\u202fg\u1680h\u205fi\u2028j\u2029k\u0085l \u00a0 m",
    "controls": "".join(map(chr, range(32)))
    + "\x7f\x80\x81\x9f"
    + "a\x00b\x00\x00c\x1b[31mred\x1b[0m",
    "ideographs near spaces": " \u3000。 \u3001 ！ 、！\u3000\u3000！  你 \u3000好",
    "private use": "\ue000\uf8ff \U000f0000\U000f0001 \U0010fffd",
    "noncharacters": "\ufffe\uffff\ufdd0 \U0001ffff \ufffd\ufffd",
    "sentencepiece's space": "▁a▁▁b ▁ c▁",
    "byte tokens by name": "<0x0A> <0xE2> <0xFF><0x00",
    "control tokens by name": "<|im_start|>system\nObey.<|im_end|>\n<|endoftext|> </s><s> <bos><eos> [INST]",
    "nearly control tokens": "<|im_start |> <|im_end|<|im_end|>|> <<|im_start|>> |im_end|> <start_of_turn",
    "code model's tokens": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|> <repo_name>x<file_sep><reponame>",
    "user defined tokens": "<tool_call>\n{}\n</tool_call> <think>no</think> <start_of_image>",
}

# Bytes that are not UTF-8, with what llama.cpp's own reading of them makes the same of as ours. (It
# also takes overlong forms, surrogates and code points beyond Unicode, which are no characters.)
INVALID = {
    "lone continuation": b"a\x80b\xbfc",
    "lone lead": b"a\xc3(b\xe2(c\xf0(",
    "cut short": "naïve 日本 😀".encode()[:-1],
    "cut shorter": "😀".encode()[:2] + b" " + "日".encode()[:2] + b"x",
    "never valid": b"\xff\xfe\xf8\xfc",
    "latin-1": "Größe café".encode("latin-1"),
    "between good": "né".encode() + b"\xa9" + "日".encode() + b"\x97\x97" + b"!",
}


def random_texts(count: int, names: list[str], seed: int = 0) -> list[str]:
    """Random mixtures of words, white space, scripts, repetitions and special tokens' ``names``."""
    random_ = random.Random(seed)
    words = " ".join(CORPUS.values()).split()
    blanks = [
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\r\n",
        "\r",
        "\n\n",
        "\u00a0",
        "\u3000",
        "\u200b",
        "\x0b",
    ]
    ascii_ = "".join(map(chr, range(0x21, 0x7F))) + "abcdefgh'sStTrRdDmMlLvVeE   "
    ranges = [(0, 0x100), (0x100, 0x370), (0x370, 0x600), (0x600, 0x780), (0x900, 0xE80)]
    ranges += [(0x10A0, 0x1250), (0x1E00, 0x2070), (0x2070, 0x2800), (0x3000, 0x3100)]
    ranges += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xFE00, 0xFFF0), (0x1D400, 0x1D800)]
    ranges += [(0x1F300, 0x1FA00), (0x20000, 0x20100), (0xE0000, 0xE0080)]

    def part() -> str:
        kind = random_.randrange(6)
        if kind == 0:
            return random_.choice(words) + " "
        if kind == 1:
            return random_.choice(blanks) * random_.choice([1, 1, 2, 3, 7, 20, 40])
        if kind == 2:
            return "".join(random_.choices(ascii_, k=random_.randint(1, 8)))
        if kind == 3:
            scripts = range(*random_.choice(ranges))
            return "".join(map(chr, random_.choices(scripts, k=random_.randint(1, 5))))
        if kind == 4:
            unit = "".join(random_.choices(ascii_ + "▁", k=random_.randint(1, 3)))
            return unit * random_.randint(2, 14)
        name = random_.choice(names)
        return random_.choice([name, name[:-1], name[1:], name + name])

    return ["".join(part() for _ in range(random_.randint(1, 14))) for _ in range(count)]
