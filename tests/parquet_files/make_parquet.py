"""Writes the Parquet files beside this script, in the shapes that the hub's data sets have. Needs pyarrow.

    python tests/parquet_files/make_parquet.py

They are made by another implementation than the one that reads them, which is why they are committed.
"""

import datetime
import decimal
import math
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
MESSAGE = pa.struct([("content", pa.string()), ("role", pa.string())])


def talk(*turns):
    return [{"content": text, "role": ("user", "assistant")[index % 2]} for index, text in enumerate(turns)]


def write(name, columns, **options):
    pq.write_table(pa.table(columns), HERE / f"{name}.parquet", **options)


# Message lists, a prompt beside them, numbers with gaps; one codec each, several row groups, checksums.
PAIRS = {
    "prompt": pa.array([f"q{number} é漢🦀" for number in range(9)]),
    "chosen": pa.array([talk(f"q{number} é漢🦀", f"a{number}") for number in range(9)], pa.list_(MESSAGE)),
    "rejected": pa.array([talk(f"q{number} é漢🦀", f"b{number}") for number in range(9)], pa.list_(MESSAGE)),
    "score_chosen": pa.array([None if number == 4 else 5.5 for number in range(9)]),
    "score_rejected": pa.array([number / 2 for number in range(9)], pa.float32()),
    "margin": pa.array([None if number % 2 else number for number in range(9)], pa.int64()),
}
for codec in ("snappy", "zstd", "gzip", "lz4", "none"):
    write(f"pairs-{codec}", PAIRS, compression=codec, row_group_size=4, write_page_checksum=True)
write("pairs-brotli", PAIRS, compression="brotli")

# Chatbot Arena, with columns that no key expects: a date, a file's bytes, a dictionary, a map; and with an image, which a
# model would have to see.
ARENA = {
    "winner": pa.array(["model_a", "model_b", "tie"]).dictionary_encode(),
    "conversation_a": pa.array([talk("q", "a")] * 3, pa.list_(MESSAGE)),
    "conversation_b": pa.array([talk("q", "b")] * 3, pa.list_(MESSAGE)),
    "turn": pa.array([1, 1, 1], pa.uint8()),
    "anony": pa.array([True, False, None]),
    "tstamp": pa.array([datetime.datetime(2023, 6, 1)] * 3, pa.timestamp("us")),
    "icon": pa.array([{"bytes": b"\xff\x00", "path": "x.png"}] * 3),
    "price": pa.array([None] * 3, pa.decimal128(10, 2)),
    "nothing": pa.array([None] * 3),
    "toxicity": pa.array([[("openai", 0.5)]] * 3, pa.map_(pa.string(), pa.float64())),
}
write("arena", ARENA, compression="snappy", data_page_version="2.0")
write("arena-image", ARENA | {"image": ARENA["icon"]}, compression="snappy")

# A list of structs of text and number.
write(
    "ranked",
    {
        "prompt": pa.array(["\n\nHuman: Hi\n\nAssistant: "]),
        "answers": pa.array([[{"answer": f"answer {rank}", "rank": float(rank)} for rank in (3, 1, 2)]]),
    },
    compression="zstd",
)
write("images", {"image": pa.array([b"\xff"] * 2)})

# Texts and numbers in types of their own, all of which JSON would write as a text or a number.
write(
    "types",
    {
        "prompt": pa.array([b"q1", "q2 é".encode()], pa.binary()),
        "chosen": pa.array(["a", "b"]).dictionary_encode(),
        "rejected": pa.array(["c", "d"], pa.large_string()),
        "margin": pa.array([decimal.Decimal("-0.050"), decimal.Decimal("12.5")], pa.decimal128(38, 3)),
        "domain": pa.array(["x", "y"]),
    },
)
write("half", {key: pa.array([key]) for key in ("prompt", "chosen", "rejected")} | {"margin": pa.array([1.5], pa.float16())})

# Lists in a struct, a map, and decimals kept as integers.
write(
    "nested",
    {
        "prompt": pa.array(["q1", "q2"]),
        "both": pa.array([{"text": ["a", "b"], "by": [{"who": "x"}]}, {"text": ["c", "d"], "by": []}]),
        "named": pa.array([[("worse", "e")], [("better", "f"), ("worse", "g")]], pa.map_(pa.string(), pa.string())),
        "margin": pa.array([decimal.Decimal("-1.25"), decimal.Decimal("3.00")], pa.decimal128(9, 2)),
    },
    store_decimal_as_integer=True,
)

# What JSON does not have: beside the pair in both rows, and in the second row's margin, answer or prompt.
ODD = {
    "prompt": pa.array(["q", "q"]),
    "chosen": pa.array(["a", "a"]),
    "rejected": pa.array(["b", "b"]),
    "when": pa.array([datetime.datetime(2023, 6, 1)] * 2, pa.timestamp("ns")),
    "day": pa.array([datetime.date(2023, 6, 1)] * 2),
    "score": pa.array([math.nan, math.inf]),
    "key": pa.array([b"\xff\x00"] * 2),
    "nested": pa.array([{"list": [1.0, math.nan], "text": "t"}] * 2),
}
write("odd", ODD)
write("odd-margin", ODD | {"margin": pa.array([1.0, math.nan])})
write("odd-half", ODD | {"margin": pa.array([math.inf, 1.0], pa.float16())})
write("odd-chosen", ODD | {"chosen": pa.array([b"a", b"\xff"])})
write("odd-prompt", ODD | {"prompt": pa.array([datetime.datetime(2023, 6, 1)] * 2, pa.timestamp("ns"))})

# A row of 3,000,000 bytes behind a short one, and one of 200,000 nulls, each in a small file.
LONG = {key: pa.array([key] * 2) for key in ("prompt", "chosen", "rejected")}
write("long", LONG | {"chosen": pa.array(["a", "a" * 3_000_000])}, compression="zstd")
write("many", LONG | {"more": pa.array([[], [None] * 200_000], pa.list_(pa.int64()))}, compression="zstd")
write("empty", {"prompt": pa.array([], pa.string())})
