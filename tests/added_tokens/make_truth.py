#!/usr/bin/env python3
"""Which ids does Transformers' AutoTokenizer give to tokens declared outside tokenizer.json? tests/all/added_tokens.rs compares.

    python make_truth.py        writes lower.json, bytes.json, pieces.json (tokenizers) and truth.json beside this script

Needs transformers and tokenizers (made with 5.24.0 and 0.23.3).
"""

import json
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
LETTERS = " abcdefghijklmnopqrstuvwxyz<>|/."


def lower():
    """A token a letter, texts made small first, so that it matters which added tokens are normalized."""
    texts = ["<unk>", "<s>", "</s>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({text: id for id, text in enumerate(texts)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def bytes_():
    """Byte-level BPE with a few merges, and added tokens of two kinds in the file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: id for id, text in enumerate([*alphabet, "th", "the", "Ġthe", "<y>"])}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<plain>", normalized=False)])
    return tokenizer


def pieces():
    """Unigram behind spaces made visible."""
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "▁" + LETTERS[1:]), ("▁the", -2.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


TOKENIZERS = {"lower": lower, "bytes": bytes_, "pieces": pieces}


def flags(content, **more):
    return dict(content=content, single_word=False, lstrip=False, rstrip=False, normalized=False) | more


def typed(content, **more):
    return {"__type": "AddedToken", **flags(content, **more)}


C, M, A = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

# Name -> the files beside tokenizer.json. `next` stands for the first free id.
CASES = {
    "nothing": {C: {}},
    "decoder": {C: {"added_tokens_decoder": {"next": flags("<X>", special=True)}}},
    "decoder, not normalized by default": {C: {"added_tokens_decoder": {"next": {"content": "<X>"}}}},
    "decoder with a gap": {C: {"added_tokens_decoder": {"next+7": flags("<X>"), "next+2": flags("<Y>", special=True)}}},
    "decoder, order of its ids": {C: {"added_tokens_decoder": {"next+1": flags("<B>"), "next": flags("<A>")}}},
    "decoder, ids as texts of unequal length": {C: {"added_tokens_decoder": {"1000": flags("<A>"), "999": flags("<B>")}}},
    "decoder changes flags": {C: {"added_tokens_decoder": {"1": flags("</s>", lstrip=True, rstrip=True, special=True)}}},
    "decoder, a piece of the vocabulary": {C: {"added_tokens_decoder": {"5": flags("t"), "6": flags("<y>")}}},
    "decoder shuts the other files": {
        C: {"added_tokens_decoder": {"next": flags("<X>")}},
        M: {"pad_token": "<P>"},
        A: {"<Q>": 90},
    },
    "additional list": {C: {"additional_special_tokens": ["<X>", "<|Y|>"]}},
    "additional list of typed": {C: {"additional_special_tokens": [typed("<X>", lstrip=True), "<|Y|>"]}},
    "extra list": {C: {"extra_special_tokens": ["<X>", typed("<Z>", special=False)]}},
    "extra list before additional": {C: {"extra_special_tokens": ["<X>"], "additional_special_tokens": ["<W>"]}},
    "extra empty": {C: {"extra_special_tokens": [], "additional_special_tokens": ["<W>"]}},
    "extra object": {C: {"extra_special_tokens": {"image_token": "<img>", "boi_token": "<boi>"}}},
    "extra object and additional": {
        C: {"extra_special_tokens": {"image_token": "<img>"}, "additional_special_tokens": ["<W>"], "video_token": "<vid>"}
    },
    "own names": {C: {"video_token": "<vid>", "image_token": typed("<img>"), "pad_token": "<P>"}},
    "named": {C: {"pad_token": "<P>", "cls_token": "<C>", "bos_token": "<B>"}},
    "named twice": {C: {"pad_token": "<P>", "cls_token": "<P>", "additional_special_tokens": ["<P>", "<X>"]}},
    "named typed, not special": {C: {"pad_token": typed("<P>", normalized=True)}},
    "named in the decoder": {
        C: {"pad_token": "<P>", "added_tokens_decoder": {"next": flags("<X>"), "next+1": flags("<P>", normalized=True)}}
    },
    "map": {C: {}, M: {"pad_token": "<P>", "unk_token": flags("<unk>")}},
    "map over config": {C: {"pad_token": "<P>"}, M: {"pad_token": flags("<Q>", lstrip=True)}},
    "map, additional": {C: {}, M: {"additional_special_tokens": ["<X>", "<Y>"]}},
    "map, additional beside the config's": {
        C: {"additional_special_tokens": ["<W>"]},
        M: {"additional_special_tokens": ["<X>"]},
    },
    "map, extra list": {C: {"extra_special_tokens": ["<W>"]}, M: {"extra_special_tokens": [flags("<X>"), "<W>", "<Y>"]}},
    "map, extra object": {C: {}, M: {"extra_special_tokens": {"image_token": "<img>"}}},
    "map, own name": {C: {"video_token": "<vid>"}, M: {"image_token": "<img>"}},
    "added": {C: {}, A: {"<Q>": "next", "<R>": "next+1"}},
    "added, out of order": {C: {}, A: {"<Q>": "next+1", "<R>": "next"}},
    "added and special": {C: {"additional_special_tokens": ["<Q>"]}, M: {"pad_token": "<R>"}, A: {"<Q>": "next", "<R>": "next+1"}},
    "added, an id that is taken": {C: {}, A: {"<Q>": 1, "<R>": "next"}},
    "no config": {M: {"pad_token": "<P>"}, A: {"<Q>": "next"}},
}

TEXTS = [
    "the <x> and <X> then <|y|><|Y|> <Y> z",
    "a <P>b <p> <Q><R> <q> c",
    " <img> <vid><boi> <w><W> <Z> <A><B> <C> </s> . <y> t",
    "<plain> the the</s> <|end|>  <X>  <Q>  ",
]


def with_ids(value, first):
    """The files with `next`, `next+N` put in."""
    number = lambda text: first + int(text[5:] or 0)
    if isinstance(value, dict):
        is_next = lambda text: isinstance(text, str) and text.startswith("next")
        return {
            (str(number(key)) if is_next(key) else key): (number(item) if is_next(item) else with_ids(item, first))
            for key, item in value.items()
        }
    return value


def main():
    truth = []
    for base, make in TOKENIZERS.items():
        tokenizer = make()
        tokenizer.save(str(HERE / f"{base}.json"), pretty=False)
        first = tokenizer.get_vocab_size(with_added_tokens=True)
        for name, files in CASES.items():
            files = with_ids(files, first)
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save(f"{folder}/tokenizer.json")
                if C in files:
                    files[C] = {"tokenizer_class": "PreTrainedTokenizerFast", **files[C]}
                else:
                    # The class must be known from somewhere.
                    Path(folder, "config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
                for file, content in files.items():
                    Path(folder, file).write_text(json.dumps(content))
                loaded = AutoTokenizer.from_pretrained(folder)
            assert type(loaded).__name__ == "TokenizersBackend", type(loaded)
            added = {id: token.content for id, token in loaded.added_tokens_decoder.items()}
            special = sorted(id for id, token in loaded.added_tokens_decoder.items() if token.special)
            ids = [loaded(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
            truth.append(dict(tokenizer=base, name=name, files=files, added=added, special=special, ids=ids))
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in truth)
    (HERE / "truth.json").write_text(f'{{"texts": {json.dumps(TEXTS)}, "cases": [\n{lines}\n]}}\n')
    print(len(truth), "cases")


if __name__ == "__main__":
    main()
