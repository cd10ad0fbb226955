//! Promise: every layout of the table is read as its example says, rows that no layout knows are read with `columns`, and
//! odd rows are counted.

use clap::ValueEnum;
use haf_dist::config::{Format, Source};
use haf_dist::data::formats::layout::Layout;
use haf_dist::data::formats::{DropReason, LAYOUTS, SourceRows, read, read_for_scoring};
use haf_dist::data::{Message, Pair, Prompt};
use haf_dist::error::{Kind, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

fn source_rows(source: &Source, rows: &[Value]) -> Result<SourceRows> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let taken = read(&Source { path, ..source.clone() })?;
    assert_eq!(taken.read, taken.pairs.len() + taken.dropped.values().sum::<usize>(), "{:?}", taken.dropped);
    Ok(taken)
}

fn auto(rows: &[Value]) -> Result<SourceRows> {
    source_rows(&Source::new(""), rows)
}

fn with_columns(columns: &[(&str, &str)], rows: &[Value]) -> Result<SourceRows> {
    let columns = columns.iter().map(|(key, path)| (String::from(*key), String::from(*path))).collect();
    source_rows(&Source { columns, ..Source::new("") }, rows)
}

fn example(layout: &Layout) -> Vec<Value> {
    layout.example.lines().map(|row| serde_json::from_str(row).unwrap()).collect()
}

fn prompt_text(pair: &Pair) -> &str {
    match &pair.prompt {
        Prompt::Text(text) => text,
        Prompt::Messages(turns) => turns.last().map_or("", Message::text),
    }
}

fn texts(pair: &Pair) -> (&str, &str, &str) {
    (prompt_text(pair), pair.chosen.text(), pair.rejected.as_ref().map_or("", Message::text))
}

fn dropped(rows: &[Value]) -> Vec<(DropReason, usize)> {
    let taken = auto(rows).unwrap();
    assert_eq!(taken.pairs, []);
    taken.dropped.into_iter().collect()
}

#[test]
fn every_example_is_read_and_its_keys_tell_its_layout() {
    let expected = [
        (Format::Helpful, ("Name a tree.", "Oak.", "Granite.")),
        (Format::Safer, ("May I eat it?", "No.", "Yes.")),
        (Format::Rewardbench2, ("Name an even number.", "4", "5")),
        (Format::LlamafactoryV1, ("Name a bird.", "A wren.", "A trout.")),
        (Format::MsSwift, ("Name a bird.", "A wren.", "A trout.")),
        (Format::Hh, ("Name a river.", "The Elbe.", "Everest.")),
        (Format::RmStatic, ("Name a river.", "The Elbe.", "Everest.")),
        (Format::Sharegpt, ("Name a color.", "Green.", "Loud.")),
        (Format::Instruction, ("Translate.\nHund", "Dog", "Hand")),
        (Format::Orca, ("What barks?", "A dog.", "A hand.")),
        (Format::Pairs, ("Name a fish.", "Trout.", "Wren.")),
        (Format::Scored, ("Name a fish.", "Trout.", "Wren.")),
        (Format::Outputs, ("Translate.\nHund", "Dog", "Hand")),
        (Format::Arena, ("Hi", "Hello.", "What?")),
        (Format::Arena55k, ("Hi", "Hello.", "What?")),
        (Format::Rated, ("Name a metal.", "Iron.", "Wool.")),
        (Format::Compared, ("Name a metal.", "Iron.", "Wool.")),
        (Format::Alpaca, ("Translate.\nHund", "Dog", "Hand")),
        (Format::Helpsteer, ("Name a tool.", "A saw.", "A cloud.")),
        (Format::NemoRl, ("Name a tool.", "A saw.", "A cloud.")),
        (Format::Ultrafeedback, ("Name a tool.", "A saw.", "A cloud.")),
        (Format::UnifiedFeedback, ("Name a tree.", "Oak.", "Chalk.")),
        (Format::Ranked, ("Name a gas.", "Neon.", "Tin.")),
        (Format::Helpsteer2Attributes, ("Name a gas.", "Neon.", "Tin.")),
    ];
    for layout in LAYOUTS {
        let named = Source { format: layout.format, ..Source::new("") };
        for source in [named, Source::new("")] {
            if source.format == Format::Auto && layout.signs.is_empty() {
                continue;
            }
            let taken = source_rows(&source, &example(layout)).unwrap();
            assert_eq!(taken.dropped, BTreeMap::new(), "{layout:?}");
            let expected = expected.iter().find(|(format, _)| *format == layout.format);
            let (_, expected) = expected.expect("every layout has a line above, of what its example says");
            assert_eq!(texts(&taken.pairs[0]), *expected, "{layout:?}");
            let unused: Vec<&str> = taken.unused.keys().map(String::as_str).collect();
            let attributes = layout.format == Format::Helpsteer2Attributes;
            assert_eq!(unused, if attributes { vec!["verbosity"] } else { vec![] }, "{layout:?}");
        }
        // One row makes several pairs only where the config says that it may.
        let several = source_rows(&Source { format: layout.format, ..Source::new("") }, &example(layout)).unwrap();
        assert!(several.read == 1 || layout.format.makes_several(), "{layout:?}");
    }
    let with_layout: Vec<Format> = LAYOUTS.iter().map(|layout| layout.format).collect();
    for format in Format::value_variants() {
        let layouts = with_layout.iter().filter(|other| *other == format).count();
        assert_eq!(layouts, usize::from(*format != Format::Auto), "{format:?}");
    }
}

#[test]
fn lists_of_right_and_wrong_answers_make_every_pair_of_them() {
    let row = json!({"id": "7", "prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"], "subset": "Ties", "num_correct": 2});
    let taken = auto(&[row]).unwrap();
    let pairs: Vec<_> = taken.pairs.iter().map(texts).collect();
    assert_eq!(pairs, [("q", "a", "c"), ("q", "a", "d"), ("q", "b", "c"), ("q", "b", "d")]);
    assert!(taken.pairs.iter().all(|pair| pair.domain.as_deref() == Some("Ties") && pair.margin.is_none()));
    assert_eq!(taken.unused.keys().collect::<Vec<_>>(), ["id", "num_correct"]);
}

#[test]
fn turns_in_json_lists_are_one_conversation_and_parted_ones_are_dropped() {
    let row = |prompt: Value, a: Value, b: Value, flags: [i32; 3]| {
        json!({"prompt": prompt.to_string(), "response_a": a.to_string(), "response_b": b.to_string(),
               "winner_model_a": flags[0], "winner_model_b": flags[1], "winner_tie": flags[2]})
    };
    let taken = auto(&[row(json!(["q", "r"]), json!(["s", "a"]), json!(["s", "b"]), [1, 0, 0])]).unwrap();
    let turns = [Message::new("user", "q"), Message::answer("s"), Message::new("user", "r")];
    assert_eq!(taken.pairs[0].prompt, Prompt::Messages(turns.to_vec()));
    assert_eq!(texts(&taken.pairs[0]), ("r", "a", "b"));
    let good = || row(json!(["q"]), json!(["a"]), json!(["b"]), [0, 1, 0]);
    for (bad, reason) in [
        (row(json!(["q", "r"]), json!(["s", "a"]), json!(["t", "b"]), [1, 0, 0]), "different prompts"),
        (row(json!(["q"]), json!(["a"]), json!(["b"]), [0, 0, 1]), "ties"),
        (row(json!(["q"]), json!(["a"]), json!([null]), [1, 0, 0]), "empty answer"),
        (row(json!(["q"]), json!(["a"]), json!(["b"]), [0, 0, 0]), "odd row: `winner_tie` and the other flags"),
        (row(json!(["q"]), json!(["a"]), json!(["b"]), [1, 0, 1]), "odd row: `winner_tie` and the other flags"),
        (
            row(json!(["q"]), json!(["a", "c"]), json!(["b"]), [1, 0, 0]),
            "odd row: `response_a` has 2 turns, but the prompt has 1",
        ),
    ] {
        let taken = auto(&[good(), bad]).unwrap();
        let told = taken.dropped.keys().next().unwrap().to_string();
        assert!(taken.pairs.len() == 1 && told.starts_with(reason), "{told}");
    }
}

#[test]
fn rows_of_one_prompt_are_joined_and_a_row_alone_is_counted() {
    let row = |prompt: &str, response: &str, helpfulness: i32, correctness: i32| json!({"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": correctness});
    let all = [
        row("p", "a", 1, 4),
        row("p", "b", 3, 2),
        row("alone", "c", 4, 4),
        row("q", "d", 2, 0),
        row("q", "e", 2, 1),
        row("r", "f", 4, 0),
        row("r", "g", 0, 3),
    ];
    let taken = auto(&all).unwrap();
    assert_eq!(taken.pairs.iter().map(texts).collect::<Vec<_>>(), [("p", "b", "a"), ("r", "f", "g")]);
    assert_eq!(taken.pairs.iter().map(|pair| pair.line).collect::<Vec<_>>(), [1, 6]);
    assert_eq!(taken.dropped, [(DropReason::FewerThanTwoAnswers, 1), (DropReason::Tie, 1)].into());
    assert_eq!(taken.unused, [(String::from("correctness"), 2)].into());
    let taken = with_columns(&[("helpfulness", "correctness")], &all);
    let expected = [("p", "a", "b"), ("q", "e", "d"), ("r", "g", "f")];
    assert_eq!(taken.unwrap().pairs.iter().map(texts).collect::<Vec<_>>(), expected);
    // Scored, each is a row of its own.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, all.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let scorable = read_for_scoring(&Source::new(&path)).unwrap();
    assert!(scorable.pairs.len() == 7 && scorable.pairs.iter().all(|pair| pair.rejected.is_none()));
    assert_eq!(scorable.unused.keys().collect::<Vec<_>>(), ["correctness", "helpfulness"]);
}

#[test]
fn ranks_and_ratings_decide_and_the_best_of_a_list_comes_first() {
    let rated = |ratings: &[(&str, &[&str])]| {
        let completion = |(text, ratings): &(&str, &[&str])| {
            let aspects: Map<String, Value> = ratings
                .iter()
                .enumerate()
                .map(|(at, rating)| (format!("aspect {at}"), json!({"Rating": rating})))
                .collect();
            json!({"response": text, "annotations": aspects, "model": "m"})
        };
        json!({"instruction": "q", "completions": ratings.iter().map(completion).collect::<Vec<_>>()})
    };
    let taken = auto(&[rated(&[("a", &["1", "5"]), ("b", &["N/A", "4"]), ("c", &["3"])])]).unwrap();
    assert_eq!(taken.pairs.iter().map(texts).collect::<Vec<_>>(), [("q", "b", "a"), ("q", "b", "c")]);
    assert_eq!(taken.dropped, [(DropReason::Tie, 1)].into());
    assert_eq!(taken.unused, [(String::from("completions.model"), 1)].into());
    let outputs = auto(&[json!({"instruction": "q", "output": ["a", "b", "c"]})]).unwrap();
    assert_eq!(
        outputs.pairs.iter().map(texts).collect::<Vec<_>>(),
        [("q", "a", "b"), ("q", "a", "c"), ("q", "b", "c")]
    );
    let arena = |winner: &str| {
        let talk = |text: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]);
        json!({"conversation_a": talk("a"), "conversation_b": talk("b"), "winner": winner})
    };
    assert_eq!(dropped(&[arena("both_bad")]), [(DropReason::Tie, 1)]);
}

#[test]
fn columns_say_where_rows_have_a_layouts_keys() {
    // In the shape of WebGPT's and SHP's rows, of PandaLM's and of nobody's.
    let webgpt = json!({"question": {"full_text": "q", "id": 1}, "answer_0": "a", "answer_1": "b", "score_0": -0.5, "score_1": 0.5});
    let columns = [
        ("prompt", "question.full_text"),
        ("response_a", "answer_0"),
        ("response_b", "answer_1"),
        ("score_a", "score_0"),
        ("score_b", "score_1"),
    ];
    let taken = with_columns(&columns, std::slice::from_ref(&webgpt)).unwrap();
    assert_eq!(texts(&taken.pairs[0]), ("q", "b", "a"));
    assert_eq!(taken.unused.keys().collect::<Vec<_>>(), ["question.id"]);
    let pandalm = json!({"instruction": "i", "input": "x", "response1": "a", "response2": "b", "annotator1": 1});
    let columns = [("output_1", "response1"), ("output_2", "response2"), ("preference", "annotator1")];
    assert_eq!(texts(&with_columns(&columns, &[pandalm]).unwrap().pairs[0]), ("i\nx", "a", "b"));
    let nested = json!({"prompt": "not this", "texts": {"q": "q", "answers": [{"t": "b"}, {"t": "a"}]}, "strength": 2});
    let columns = [
        ("prompt", "texts.q"),
        ("chosen", "texts.answers.1.t"),
        ("rejected", "texts.answers.0.t"),
        ("margin", "strength"),
    ];
    let taken = with_columns(&columns, &[nested]).unwrap();
    assert_eq!((texts(&taken.pairs[0]), taken.pairs[0].margin), (("q", "a", "b"), Some(2.0)));
    assert_eq!(taken.unused.keys().collect::<Vec<_>>(), ["prompt"], "a key that another stands for is no longer read");

    let told =
        |columns: &[(&str, &str)]| with_columns(columns, &[json!({"prompt": "q", "chosen": "a", "rejected": "b"})]);
    let error = told(&[("promt", "prompt")]).unwrap_err();
    assert!(error.kind == Kind::Input && error.message.contains("no format has a key `promt`"), "{error}");
    let error = told(&[("margin", "strength")]).unwrap_err();
    assert!(error.kind == Kind::Input && error.message.contains("no row has `strength`"), "{error}");
}

#[test]
fn a_refused_file_shows_a_mapping_to_try() {
    let hint = |row: Value| auto(&[row]).unwrap_err().hint.unwrap();
    for (row, mapping) in [
        (
            json!({"question": "q", "best": "a", "worst": "b"}),
            r#"{ prompt = "question", chosen = "best", rejected = "worst" }"#,
        ),
        (
            json!({"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": 0}),
            r#"{ prompt = "question.full_text", response_a = "answer_0", response_b = "answer_1", score_a = "score_0", score_b = "score_1" }"#,
        ),
        (
            json!({"query": "q", "response": "a", "rejected_response": "b", "history": [["x", "y"]]}),
            r#"{ prompt = "query", chosen = "response", rejected = "rejected_response" }"#,
        ),
        (
            json!({"question": "q", "answer_a": "a", "answer_b": "b", "preferred": "a"}),
            r#"{ prompt = "question", response_a = "answer_a", response_b = "answer_b", winner = "preferred" }"#,
        ),
        (
            json!({"post": "q", "chosen": "a", "rejected": "b"}),
            r#"{ prompt = "post", chosen = "chosen", rejected = "rejected" }"#,
        ),
    ] {
        let hint = hint(row);
        assert!(hint.contains(&format!("columns = {mapping}")), "{hint}");
    }
    // Control: a guess is made of the row's own keys only.
    assert!(!hint(json!({"text": "t"})).contains("columns = {"));
}

#[test]
fn odd_rows_are_left_out_and_counted_and_nothing_but_odd_rows_is_an_error() {
    let good = || json!({"prompt": "q", "chosen": "a", "rejected": "b", "note": "n"});
    let taken =
        auto(&[json!({"other": 1}), good(), json!({"prompt": "q", "chosen": 3, "rejected": "b"}), json!([1]), good()]);
    let taken = taken.unwrap();
    assert_eq!((taken.read, taken.pairs.len(), taken.rows), (5, 2, 2));
    let reasons: Vec<String> = taken.dropped.keys().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons.iter().all(|reason| reason.starts_with("odd row: ")), "{reasons:?}");
    assert!(reasons[0].contains("`chosen` is a number"), "{reasons:?}");
    assert!(taken.first_odd.unwrap().message.contains("rows.jsonl:1: a row of no known layout"));
    assert_eq!(taken.unused, [(String::from("note"), 2)].into());

    let error = auto(&[json!({"prompt": "q", "chosen": 3, "rejected": "b"}), json!({"prompt": "q"})]).unwrap_err();
    assert!(error.kind == Kind::Input && error.message.contains("rows.jsonl:1: `chosen` is a number"), "{error}");
    // Many kinds of faults do not make a report of their own length.
    let faults = (0..100).map(
        |fault| json!({"prompt": "q", "chosen": "a", "rejected": "b", "margin": format!("{fault}!"), "domain": fault}),
    );
    let faults: Vec<Value> = faults
        .map(|mut row| {
            row["prompt"] = json!([{"from": format!("{row}"), "value": ""}]);
            row
        })
        .collect();
    let taken = auto(&[vec![good()], faults].concat()).unwrap();
    assert!(taken.dropped.len() <= 13 && taken.dropped.values().sum::<usize>() == 100, "{:?}", taken.dropped);
}
