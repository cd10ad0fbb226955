//! Promise: the published preference sets are read as their authors mean them, and every pair that is not used is counted.
//!
//! Rows are our own, in the shape of the published ones.

use crate::property;
use clap::ValueEnum;
use haf_dist::config::{Format, Source};
use haf_dist::data::formats::{DropReason, SourceRows, read, read_for_scoring};
use haf_dist::data::{Message, Pair, Prompt};
use haf_dist::error::{Kind, Result};
use property::cases;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn written<T>(rows: &[Value], look: impl FnOnce(PathBuf) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    look(path)
}

fn to_score(path: &Path) -> Result<Vec<Pair>> {
    read_for_scoring(&Source::new(path)).map(|scorable| scorable.pairs)
}

fn rows(source: &Source, rows: &[Value]) -> Result<SourceRows> {
    let taken = written(rows, |path| read(&Source { path, ..source.clone() }))?;
    assert_eq!(taken.read, taken.pairs.len() + taken.dropped.values().sum::<usize>(), "{:?}", taken.dropped);
    Ok(taken)
}

fn told(row: Value) -> Pair {
    let taken = rows(&Source::new(""), &[row]).unwrap();
    assert_eq!(taken.pairs.len(), 1, "{:?}", taken.dropped);
    taken.pairs.into_iter().next().unwrap()
}

fn dropped(source: &Source, row: Value) -> Vec<(DropReason, usize)> {
    let taken = rows(source, &[row]).unwrap();
    assert_eq!(taken.pairs, [], "nothing was to be taken");
    taken.dropped.into_iter().collect()
}

fn messages(turns: &[(&str, &str)]) -> Prompt {
    let message = |(role, content): &(&str, &str)| Message::new(*role, *content);
    Prompt::Messages(turns.iter().map(message).collect())
}

fn talk(turns: &[&str]) -> Value {
    let role = |index: usize| if index.is_multiple_of(2) { "user" } else { "assistant" };
    turns.iter().enumerate().map(|(index, text)| json!({"content": text, "role": role(index)})).collect()
}

fn arena(winner: &str, a: &[&str], b: &[&str]) -> Value {
    json!({"question_id": "1", "model_a": "x", "model_b": "y", "winner": winner, "turn": a.len() / 2,
           "conversation_a": talk(a), "conversation_b": talk(b)})
}

fn alpaca(input: &str, preference: impl Into<Value>) -> Value {
    json!({"instruction": "do", "input": input, "output_1": "one", "output_2": "two", "preference": preference.into()})
}

fn helpsteer2(prompt: &str, strength: impl Into<Value>) -> Value {
    json!({"split": "train", "prompt": prompt, "response_1": "one", "response_2": "two",
           "preference_strength": strength.into()})
}

fn helpsteer3(strength: i64) -> Value {
    json!({"domain": "code", "language": "rust", "context": talk(&["q"]), "response1": "one", "response2": "two",
           "overall_preference": strength})
}

fn nectar(ranks: &[f64]) -> Value {
    let answer =
        |(index, rank): (usize, &f64)| json!({"answer": format!("answer {index}"), "model": "m", "rank": rank});
    json!({"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: ", "turns": 2,
           "answers": ranks.iter().enumerate().map(answer).collect::<Vec<_>>()})
}

fn scored(chosen: f64, rejected: f64) -> Value {
    json!({"prompt": "q", "prompt_id": "p", "chosen": talk(&["q", "a"]), "rejected": talk(&["q", "b"]),
           "messages": talk(&["q", "a"]), "score_chosen": chosen, "score_rejected": rejected})
}

#[test]
fn arena_takes_the_winner_and_drops_ties_and_talks_that_parted() {
    let pair = told(arena("model_b", &["q", "a"], &["q", "b"]));
    assert_eq!(
        (pair.prompt, pair.chosen.text(), pair.rejected.as_ref().map(Message::text)),
        (messages(&[("user", "q")]), "b", Some("a"))
    );
    assert_eq!(told(arena("model_a", &["q", "a"], &["q", "b"])).chosen.text(), "a");
    let any = Source::new("");
    for tie in ["tie", "tie (bothbad)"] {
        assert_eq!(dropped(&any, arena(tie, &["q", "a"], &["q", "b"])), [(DropReason::Tie, 1)]);
    }
    let parted = arena("model_a", &["q", "a", "r", "c"], &["q", "b", "r", "d"]);
    assert_eq!(dropped(&any, parted), [(DropReason::DifferentPrompts, 1)]);
    let no_prompt = json!({"winner": "model_a", "conversation_a": [{"role": "assistant", "content": "a"}],
                           "conversation_b": [{"role": "assistant", "content": "b"}]});
    assert_eq!(dropped(&any, no_prompt), [(DropReason::EmptyPrompt, 1)]);
}

#[test]
fn the_single_turn_filter_counts_what_it_drops_in_every_format() {
    let single = Source { single_turn: true, ..Source::new("") };
    let two_turns = arena("model_a", &["q", "a", "r", "c"], &["q", "a", "r", "d"]);
    assert_eq!(told(two_turns.clone()).chosen.text(), "c");
    assert_eq!(dropped(&single, two_turns), [(DropReason::SeveralTurns, 1)]);
    let hh = |start: &str| json!({"chosen": format!("{start}\n\nAssistant: yes"), "rejected": format!("{start}\n\nAssistant: no")});
    let long = hh("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?");
    assert_eq!(dropped(&single, long), [(DropReason::SeveralTurns, 1)]);
    let with_system = json!({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
                             "chosen": "a", "rejected": "b"});
    let kept = [hh("\n\nHuman: Why?"), with_system, json!({"prompt": "q", "chosen": "a", "rejected": "b"})];
    for row in kept {
        assert_eq!(rows(&single, &[row]).unwrap().pairs.len(), 1);
    }
}

#[test]
fn alpaca_puts_the_input_on_the_line_after_the_instruction() {
    let pair = told(alpaca("this", 2));
    assert_eq!((pair.prompt, pair.chosen.text()), (Prompt::Text("do\nthis".into()), "two"));
    let pair = told(alpaca("", 1.0));
    assert_eq!((pair.prompt, pair.rejected.as_ref().map(Message::text)), (Prompt::Text("do".into()), Some("two")));
    assert_eq!(dropped(&Source::new(""), alpaca("", 0)), [(DropReason::Tie, 1)]);
}

#[test]
fn a_preferences_strength_is_the_margin_in_units_of_the_sources_scale() {
    let pair = told(helpsteer2("q", -3));
    assert_eq!((pair.chosen.text(), pair.margin), ("one", Some(3.0)));
    let pair = told(helpsteer3(1));
    assert_eq!((pair.chosen.text(), pair.margin, pair.domain.as_deref()), ("two", Some(1.0), Some("code")));
    assert_eq!(dropped(&Source::new(""), helpsteer3(0)), [(DropReason::Tie, 1)]);
    for (scale, margin) in [(0.25, Some(0.5)), (0.0, None)] {
        let source = Source { margin_scale: scale, ..Source::new("") };
        assert_eq!(rows(&source, &[helpsteer2("q", 2)]).unwrap().pairs[0].margin, margin);
        let plain = json!({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2});
        assert_eq!(rows(&source, &[plain]).unwrap().pairs[0].margin, margin, "a row's own margin is scaled too");
    }
}

#[test]
fn helpsteer2s_markers_are_turns() {
    let prompt = "q\n<extra_id_1>Assistant\na\nb\n<extra_id_1>User\nr";
    let expected = messages(&[("user", "q"), ("assistant", "a\nb"), ("user", "r")]);
    assert_eq!(told(helpsteer2(prompt, 1)).prompt, expected);
    // Not a turn of the user's at the end, or no marker the card knows: a text like any other.
    for text in ["q\n<extra_id_1>Assistant\na", "q\n<extra_id_1>Tool\na\n<extra_id_1>User\nr", "q"] {
        assert_eq!(told(helpsteer2(text, 1)).prompt, Prompt::Text(text.into()));
    }
}

#[test]
fn scores_are_a_margin_only_if_requested() {
    assert_eq!(told(scored(8.5, 6.0)).margin, None);
    let source = Source { format: Format::Scored, ..Source::new("") };
    let pair = rows(&source, &[scored(8.5, 6.0)]).unwrap().pairs.remove(0);
    assert_eq!((pair.prompt, pair.chosen.text(), pair.margin), (Prompt::Text("q".into()), "a", Some(2.5)));
    assert_eq!(dropped(&source, scored(6.0, 6.0)), [(DropReason::Tie, 1)]);
    assert_eq!(dropped(&source, scored(5.0, 6.0)), [(DropReason::ContradictoryScores, 1)]);
}

#[test]
fn a_ranked_list_makes_all_its_pairs_or_an_even_pick_of_them() {
    let source = |pairs_per_prompt| Source { pairs_per_prompt, ..Source::new("") };
    let taken = rows(&source(0), &[nectar(&[2.0, 1.0, 3.0, 3.0])]).unwrap();
    let pairs: Vec<_> =
        taken.pairs.iter().map(|pair| (pair.chosen.text(), pair.rejected.as_ref().unwrap().text())).collect();
    let [a, b, c, d] = ["answer 0", "answer 1", "answer 2", "answer 3"];
    assert_eq!(pairs, [(b, a), (a, c), (a, d), (b, c), (b, d)]);
    assert_eq!((taken.read, taken.dropped[&DropReason::Tie]), (6, 1));
    let prompt = messages(&[("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]);
    assert!(taken.pairs.iter().all(|pair| pair.prompt == prompt && pair.line == 1));

    let taken = rows(&source(2), &[nectar(&[1.0, 2.0, 3.0, 4.0])]).unwrap();
    let pairs: Vec<_> =
        taken.pairs.iter().map(|pair| (pair.chosen.text(), pair.rejected.as_ref().unwrap().text())).collect();
    assert_eq!((pairs, taken.dropped[&DropReason::OverPairsPerPrompt]), (vec![(a, b), (b, c)], 4));

    assert_eq!(dropped(&source(0), nectar(&[1.0])), [(DropReason::FewerThanTwoAnswers, 1)]);
    assert_eq!(dropped(&source(0), nectar(&[1.0, 1.0, 1.0])), [(DropReason::Tie, 3)]);
    let plain = json!({"prompt": "q", "responses": ["x", "y"], "ranks": [2, 1]});
    assert_eq!(told(plain).chosen.text(), "y");
    let error = rows(&source(0), &[nectar(&[1.0; 65])]).unwrap_err();
    assert!(error.message.contains("65 answers, expected at most 64"), "{error}");
    // They are counted before any is read.
    let mut answers = vec![json!("x"); 70];
    answers[0] = json!({"no": "answer"});
    let outputs = json!({"instruction": "q", "output": answers});
    let source = Source { format: Format::Outputs, ..source(0) };
    let error = rows(&source, &[outputs]).unwrap_err();
    assert!(error.message.contains("70 answers, expected at most 64"), "{error}");
}

#[test]
fn a_sources_rows_are_counted_before_any_is_dropped() {
    let all: Vec<Value> = (0..20).map(|row| alpaca("", if row % 2 == 0 { 1 } else { 0 })).collect();
    for (range, lines) in [("10%:", 3..20), (":10%", 1..2), ("5:8", 7..8), (":", 1..20)] {
        let source = Source { rows: range.parse().unwrap(), ..Source::new("") };
        let taken = rows(&source, &all).unwrap();
        let expected: Vec<usize> = lines.filter(|line| line % 2 == 1).collect();
        assert_eq!(taken.pairs.iter().map(|pair| pair.line).collect::<Vec<_>>(), expected, "{range}");
        assert_eq!((taken.read, taken.dropped.contains_key(&DropReason::OutsideRows)), (20, range != ":"));
    }
}

#[test]
fn a_wrong_value_names_line_key_and_what_was_expected() {
    let mut no_role = arena("model_a", &["q", "a"], &["q", "b"]);
    no_role["conversation_b"][0]["role"] = json!(7);
    let mut text_answer = nectar(&[1.0, 2.0]);
    text_answer["answers"][1]["answer"] = json!(["x"]);
    let mut rankless = nectar(&[1.0, 2.0]);
    rankless["answers"][1]["rank"] = Value::Null;
    for (good, bad, expected) in [
        (arena("tie", &["q", "a"], &["q", "b"]), arena("nobody", &["q", "a"], &["q", "b"]), "`winner` is \"nobody\""),
        (arena("tie", &["q", "a"], &["q", "b"]), no_role, "message 1 of `conversation_b`: `role` is a number"),
        (arena("tie", &["q", "a"], &["q", "b"]), arena("model_a", &["q"], &["q"]), "is the user's"),
        (alpaca("", 1), alpaca("", 3), "`preference` is \"3\", expected \"1\", \"2\", \"0\", \"1.5\""),
        (alpaca("", 1), alpaca("", json!([1])), "`preference` is a list"),
        (helpsteer2("q", 1), helpsteer2("q", 4), "`preference_strength` is 4, expected a whole number from -3 to 3"),
        (helpsteer2("q", 1), helpsteer2("q", 0.5), "`preference_strength` is 0.5"),
        (nectar(&[1.0, 2.0]), text_answer, "message 1 of entry 2 of `answers.answer` is a string, expected a message"),
        (nectar(&[1.0, 2.0]), rankless, "entry 2 of `answers.rank` is missing, expected a finite number"),
        (
            nectar(&[1.0, 2.0]),
            json!({"prompt": "q", "responses": ["x"], "ranks": [1, 2]}),
            "there are 1 answers but 2 ranks or scores",
        ),
    ] {
        let taken = rows(&Source::new(""), &[good, bad]).unwrap();
        let error = taken.first_odd.unwrap();
        assert!(error.message.contains("rows.jsonl:2: ") && error.message.contains(expected), "{error}");
        assert!(error.kind == Kind::Input && error.hint.is_some(), "{error}");
    }
}

#[test]
fn scoring_takes_every_shape_of_pair_and_refuses_what_has_no_one_line_of_scores() {
    let pairs = [arena("model_b", &["q", "a"], &["q", "b"]), alpaca("", 1), helpsteer3(-1), nectar(&[2.0, 1.0])];
    let chosen: Vec<String> = written(&pairs, |path| to_score(&path))
        .unwrap()
        .into_iter()
        .map(|pair| pair.chosen.text().to_owned())
        .collect();
    assert_eq!(chosen, ["b", "one", "one", "answer 1"]);
    for (row, expected) in [(alpaca("", 0), "ties"), (nectar(&[1.0, 2.0, 3.0]), "a list of 3 pairs, expected one")] {
        let error = written(&[row], |path| to_score(&path)).unwrap_err();
        assert!(error.message.contains(":1: ") && error.message.contains(expected), "{error}");
    }
}

/// A row, one of its values replaced by one of another kind, at any depth.
fn mistype(row: &mut Value, path: &[Index], with: &Value) {
    let inner: Vec<&mut Value> = match row {
        Value::Object(object) => object.values_mut().collect(),
        Value::Array(list) => list.iter_mut().collect(),
        _ => Vec::new(),
    };
    match path.split_first() {
        Some((first, rest)) if !inner.is_empty() => {
            let chosen = first.index(inner.len());
            mistype(inner.into_iter().nth(chosen).unwrap(), rest, with);
        }
        _ => *row = with.clone(),
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Cut, reordered and mistyped files: all pairs accounted for, or one input error that names the line; no panic.
    #[test]
    fn damaged_rows_are_counted_or_named(
        order in Just((0..7_usize).collect::<Vec<_>>()).prop_shuffle(), format in 0..Format::value_variants().len(),
        depth in proptest::collection::vec(any::<Index>(), 0..4), victim in 0..8_usize, with in 0..6_usize,
        cut in proptest::option::of(any::<Index>()), pairs_per_prompt in 0..4_usize, single_turn in any::<bool>(),
    ) {
        let good = [
            arena("model_b", &["q", "a"], &["q", "é漢"]), alpaca("this", 2), helpsteer2("q", -2), helpsteer3(3),
            nectar(&[1.0, 2.0, 2.0]), scored(2.0, 1.0), arena("tie", &["q", "a", "r", "c"], &["q", "a", "r", "d"]),
        ];
        let mut shuffled: Vec<Value> = order.iter().map(|row| good[*row].clone()).collect();
        let with = [json!(null), json!(true), json!(-1e300), json!("text"), json!([]), json!({})][with].clone();
        if let Some(row) = shuffled.get_mut(victim) {
            mistype(row, &depth, &with);
        }
        let mut text: String = shuffled.iter().map(|row| format!("{row}\n")).collect();
        if let Some(cut) = cut {
            let mut at = cut.index(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            text.truncate(at);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, &text).unwrap();
        let format = Format::value_variants()[format];
        let lines = text.lines().count();
        match read(&Source { format, pairs_per_prompt, single_turn, ..Source::new(&path) }) {
            Ok(taken) => {
                prop_assert_eq!(taken.read, taken.pairs.len() + taken.dropped.values().sum::<usize>());
                // Rows of one prompt are joined.
                let joined = format == Format::Helpsteer2Attributes;
                prop_assert!(joined || taken.read >= lines, "{} of {} rows were skipped", lines - taken.read, lines);
            }
            Err(error) => {
                prop_assert_eq!(error.kind, Kind::Input);
                let named = error.message.contains("rows.jsonl:") || error.message.contains("holds no rows");
                prop_assert!(named && error.hint.is_some(), "{}", error);
            }
        }
        let _ = to_score(&path);
    }

    /// Files of one shape whose rows are whole: reordering changes no pair.
    #[test]
    fn the_order_of_rows_changes_no_pair(order in Just((0..6_i64).collect::<Vec<_>>()).prop_shuffle()) {
        let row = |number: &i64| helpsteer2(&format!("q{number}"), number - 3);
        let mut pairs = rows(&Source::new(""), &order.iter().map(row).collect::<Vec<_>>()).unwrap().pairs;
        pairs.iter_mut().for_each(|pair| pair.line = 0);
        pairs.sort_by_key(|pair| format!("{:?}", pair.prompt));
        let margins: Vec<f32> = pairs.iter().filter_map(|pair| pair.margin).collect();
        prop_assert_eq!(margins, [3.0, 2.0, 1.0, 1.0, 2.0]);
    }
}
