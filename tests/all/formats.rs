//! Reading sources: every shape of row, every tolerated form of file, every error a user can cause.

use crate::property;
use flate2::{Compression, write::GzEncoder};
use haf_dist::config::{Format, Source};
use haf_dist::data::formats::{DropReason, SourceRows, read, read_for_scoring};
use haf_dist::data::{Message, Pair, Prompt, TemplateInputs};
use haf_dist::error::{Error, Kind, Result};
use property::cases;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// A source in a folder of its own, gone with it.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(name: &str, content: impl AsRef<[u8]>) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    File { _folder: folder, path }
}

impl File {
    fn read(&self, format: Format) -> Result<SourceRows> {
        read(&Source { format, ..Source::new(&self.path) })
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn rows(format: Format, rows: &[Value]) -> Result<SourceRows> {
    file("rows.jsonl", rows.iter().map(|row| format!("{row}\n")).collect::<String>()).read(format)
}

fn only(row: Value) -> Pair {
    let mut taken = rows(Format::Auto, &[row]).unwrap();
    assert_eq!(taken.pairs.len(), 1, "{:?}", taken.dropped);
    taken.pairs.remove(0)
}

fn dropped(format: Format, row: Value) -> DropReason {
    let taken = rows(format, &[row]).unwrap();
    assert_eq!((taken.read, taken.pairs.len(), taken.dropped.len()), (1, 0, 1));
    taken.dropped.into_keys().next().unwrap()
}

/// The error of an odd row on line 2, which is left out and counted behind a good one.
fn refused(format: Format, good: Value, bad: Value) -> Error {
    let taken = rows(format, &[good, bad]).unwrap();
    assert_eq!((taken.read, taken.pairs.len(), taken.dropped.len()), (2, 1, 1), "{:?}", taken.dropped);
    assert!(matches!(taken.dropped.keys().next(), Some(DropReason::Odd(_))), "{:?}", taken.dropped);
    let error = taken.first_odd.unwrap();
    assert_eq!(error.kind, Kind::Input);
    assert!(error.message.contains("rows.jsonl:2: "), "{error}");
    assert!(error.hint.is_some(), "no hint: {error}");
    error
}

fn turn(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

fn simple() -> Value {
    json!({"prompt": "q", "chosen": "a", "rejected": "b"})
}

fn safety(better: usize, safer: usize, safe: [bool; 2]) -> Value {
    json!({"prompt": "q", "response_0": "zero", "response_1": "one", "better_response_id": better,
           "safer_response_id": safer, "is_response_0_safe": safe[0], "is_response_1_safe": safe[1]})
}

const HH_CHOSEN: &str = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\nHuman: really\n\nAssistant:  Because. ";

#[test]
fn string_pairs_keep_their_text_to_the_byte() {
    let pair = only(json!({"prompt": " q\n", "chosen": "  a ", "rejected": "é漢🦀\r\n", "margin": 1.5, "domain": "x"}));
    assert_eq!(
        pair,
        Pair {
            prompt: Prompt::Text(" q\n".into()),
            inputs: TemplateInputs::default(),
            chosen: Message::answer("  a "),
            rejected: Some(Message::answer("é漢🦀\r\n")),
            margin: Some(1.5),
            tied: false,
            domain: Some("x".into()),
            line: 1
        }
    );
}

#[test]
fn a_prompt_may_stand_apart_from_message_lists_or_at_their_start() {
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    let prompt = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]);
    let whole = |text: &str| json!([prompt[0], prompt[1], {"role": "assistant", "content": text}]);
    let expected = Prompt::Messages(vec![turn("system", "s"), turn("user", "q")]);
    for row in [
        json!({"prompt": prompt, "chosen": "a", "rejected": "b"}),
        json!({"prompt": prompt, "chosen": answer("a"), "rejected": answer("b")}),
        json!({"prompt": prompt, "chosen": whole("a"), "rejected": answer("b")}),
        json!({"chosen": whole("a"), "rejected": whole("b")}),
        json!({"prompt": null, "chosen": whole("a"), "rejected": whole("b"), "margin": null}),
    ] {
        let pair = only(row);
        assert_eq!(
            (&pair.prompt, pair.chosen.text(), pair.rejected.as_ref().map(Message::text)),
            (&expected, "a", Some("b"))
        );
    }
    let spoken = |text: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]);
    let pair = only(json!({"prompt": "q", "chosen": spoken("a"), "rejected": spoken("b")}));
    assert_eq!((pair.prompt, pair.chosen.text()), (Prompt::Text("q".into()), "a"));
}

#[test]
fn conversations_that_parted_have_no_common_prompt() {
    let talk = |texts: &[&str]| -> Value {
        let role = |place: usize| if place.is_multiple_of(2) { "user" } else { "assistant" };
        texts.iter().enumerate().map(|(place, text)| json!({"role": role(place), "content": text})).collect()
    };
    for rejected in [talk(&["q", "b", "r", "c"]), talk(&["r", "a"]), talk(&["q", "a", "r", "c"])] {
        let row = json!({"chosen": talk(&["q", "a"]), "rejected": rejected});
        assert_eq!(dropped(Format::Auto, row), DropReason::DifferentPrompts);
    }
}

#[test]
fn message_lists_that_end_alike_are_identical_answers() {
    let list = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    assert_eq!(dropped(Format::Auto, json!({"chosen": list, "rejected": list})), DropReason::IdenticalAnswers);
}

#[test]
fn transcripts_become_messages_and_one_space_is_the_templates() {
    let rejected = HH_CHOSEN.replace("  Because. ", "no space");
    let pair = only(json!({"chosen": HH_CHOSEN, "rejected": rejected}));
    let prompt = vec![turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Why?\nHuman: really")];
    assert_eq!(pair.prompt, Prompt::Messages(prompt));
    assert_eq!((pair.chosen.text(), pair.rejected.as_ref().map(Message::text)), (" Because. ", Some("no space")));

    // Empty turns, and a first marker without its line breaks.
    let pair = only(json!({"chosen": "Human:\n\nAssistant:\n\nHuman: \n\nAssistant: a", "rejected":
        "\n\nHuman:\n\nAssistant:\n\nHuman: \n\nAssistant: b"}));
    assert_eq!(pair.prompt, Prompt::Messages(vec![turn("user", ""), turn("assistant", ""), turn("user", "")]));
}

#[test]
fn transcripts_that_cannot_be_told_apart_are_dropped_and_counted() {
    let other = HH_CHOSEN.replace("Hi", "Ho").replace("Because", "No");
    let talks_to_itself = format!("{HH_CHOSEN}\n\nHuman: And?");
    let chosen = |rejected: &str| json!({"chosen": HH_CHOSEN, "rejected": rejected});
    assert_eq!(dropped(Format::Hh, chosen(&other)), DropReason::DifferentPrompts);
    assert_eq!(dropped(Format::Hh, chosen(&talks_to_itself)), DropReason::LastTurnNotAssistant);
    assert_eq!(dropped(Format::Hh, chosen(HH_CHOSEN)), DropReason::IdenticalAnswers);
    let nothing = json!({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"});
    assert_eq!(dropped(Format::Hh, nothing), DropReason::EmptyPrompt);
}

#[test]
fn safety_rows_are_chosen_by_helpfulness_or_by_safety() {
    let helpful = |row| rows(Format::Helpful, &[row]).unwrap().pairs.remove(0);
    let safer = |row| rows(Format::Safer, &[row]).unwrap().pairs.remove(0);
    assert_eq!(helpful(safety(1, 0, [true, false])).chosen.text(), "one");
    assert_eq!(safer(safety(1, 0, [true, false])).chosen.text(), "zero");
    assert_eq!(safer(safety(0, 1, [false, true])).rejected.as_ref().map(Message::text), Some("zero"));
    assert_eq!(only(safety(1, 0, [true, true])).chosen.text(), "one", "the keys alone mean helpful");
    assert_eq!(dropped(Format::Safer, safety(0, 0, [true, true])), DropReason::NotExactlyOneSafe);
    assert_eq!(dropped(Format::Safer, safety(0, 0, [false, false])), DropReason::NotExactlyOneSafe);
    assert_eq!(dropped(Format::Safer, safety(0, 1, [true, false])), DropReason::ContradictorySafety);
}

#[test]
fn empty_and_identical_answers_are_dropped_and_counted() {
    let taken = rows(
        Format::Auto,
        &[
            simple(),
            json!({"prompt": "q", "chosen": "a", "rejected": "a"}),
            json!({"prompt": "q", "chosen": " \n\t", "rejected": "a"}),
            json!({"prompt": "q", "chosen": "a", "rejected": ""}),
            json!({"prompt": [], "chosen": "a", "rejected": "b"}),
            json!({"prompt": "", "chosen": "a", "rejected": "b"}),
        ],
    )
    .unwrap();
    assert_eq!((taken.read, taken.pairs.len()), (6, 2));
    let counts: Vec<_> = taken.dropped.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    assert_eq!(counts, ["identical answers 1", "empty answer 2", "empty prompt 1"]);
}

#[test]
fn every_form_of_file_holds_the_same_rows() {
    let lines = "\u{feff}\r\n{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}\r\n\n \t\n\
                 {\"prompt\":\"r\",\"chosen\":\"c\",\"rejected\":\"d\"}";
    let array = "\u{feff}\n\n [ {\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"},\n\
                 {\"prompt\":\"r\",\"chosen\":\"c\",\"rejected\":\"d\"} ]\n\n";
    for (text, numbers) in [(lines, [2, 5]), (array, [1, 2])] {
        // Told by content: the names lie.
        for content in [text.as_bytes().to_vec(), gzip(text)] {
            let pairs = file("rows.txt", content).read(Format::Auto).unwrap().pairs;
            let seen: Vec<_> = pairs.iter().map(|pair| (pair.chosen.text(), pair.line)).collect();
            assert_eq!(seen, [("a", numbers[0]), ("c", numbers[1])]);
        }
    }
    // Gzip in several members, as `cat a.gz b.gz` makes it.
    let twice = [gzip(&format!("{}\n", simple())), gzip(&format!("{}\n", simple()))].concat();
    assert_eq!(file("rows.jsonl.gz", twice).read(Format::Auto).unwrap().read, 2);
}

#[test]
fn the_domain_is_the_rows_then_the_sources_then_the_files() {
    let named = file("hh-base.jsonl.gz", gzip(&simple().to_string()));
    let source = |domain| Source { domain, ..Source::new(&named.path) };
    assert_eq!(read(&source(None)).unwrap().pairs[0].domain.as_deref(), Some("hh-base"));
    assert_eq!(read(&source(Some("d".into()))).unwrap().pairs[0].domain.as_deref(), Some("d"));
}

#[test]
fn no_domain_has_the_totals_name() {
    let taken = file("all.jsonl", simple().to_string()).read(Format::Auto).unwrap();
    assert_eq!(taken.pairs[0].domain.as_deref(), Some("all.jsonl"));
    let named = json!({"prompt": "q", "chosen": "a", "rejected": "b", "domain": "all"});
    assert!(refused(Format::Auto, simple(), named).message.contains("the total over all domains"));
}

#[test]
fn a_row_of_the_wrong_shape_names_line_key_and_what_was_expected() {
    let conversation = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let asks = json!([{"role": "user", "content": "q"}]);
    for (bad, expected) in [
        (json!({"prompt": "q", "chosen": "a"}), "`rejected` is missing, expected a string or a message list"),
        (json!({"prompt": "q", "chosen": 3, "rejected": "b"}), "`chosen` is a number"),
        (json!({"prompt": "q", "chosen": null, "rejected": "b"}), "`chosen` is missing"),
        (json!({"prompt": {}, "chosen": "a", "rejected": "b"}), "`prompt` is an object"),
        (json!({"chosen": "a", "rejected": "b"}), "`prompt` or `context` is missing"),
        (json!({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "one"}), "`margin` is a string"),
        (json!({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e300}), "expected a finite number"),
        (json!({"prompt": "q", "chosen": "a", "rejected": "b", "domain": 1}), "`domain` is a number"),
        (json!({"chosen": conversation, "rejected": asks}), "the last message of `rejected` is the user's"),
        (json!({"chosen": conversation, "rejected": []}), "`rejected` is an empty message list"),
        (json!({"prompt": "other", "chosen": conversation, "rejected": "b"}), "that are not the prompt"),
        (
            json!({"prompt": "q", "chosen": [{"from": "gpt"}], "rejected": "b"}),
            "message 1 of `chosen`: `value` is missing",
        ),
        (
            json!({"prompt": [{"role": "user", "content": [1]}], "chosen": "a", "rejected": "b"}),
            "part 1 of message 1 of `prompt` is not a text part",
        ),
        (json!(["a"]), "expected an object, found a list"),
    ] {
        let error = refused(Format::Auto, simple(), bad);
        assert!(error.message.contains(expected), "{error}");
    }
    let hh = json!({"chosen": HH_CHOSEN, "rejected": format!("{HH_CHOSEN}!")});
    let error = refused(Format::Auto, hh.clone(), json!({"chosen": "plain", "rejected": HH_CHOSEN}));
    assert!(error.message.contains("`chosen` is not a transcript"), "{error}");
    let good = safety(0, 0, [true, false]);
    for (key, value, expected) in [
        ("better_response_id", json!(2), "`better_response_id` is \"2\", expected \"0\", \"1\""),
        ("response_1", json!(null), "`response_1` is missing"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let error = refused(Format::Helpful, good.clone(), bad);
        assert!(error.message.contains(expected), "{error}");
    }
    let mut bad = good.clone();
    bad["is_response_1_safe"] = json!("no");
    assert!(refused(Format::Safer, good, bad).message.contains("expected true or false"));
    let error = rows(Format::Auto, &[json!({"question": "q"})]).unwrap_err();
    assert!(error.message.contains("no known layout") && error.hint.is_some(), "{error}");
}

#[test]
fn a_broken_file_names_file_and_line() {
    let good = simple().to_string();
    for (content, expected) in [
        (format!("{good}\n{{\"prompt\": }}\n"), "rows.jsonl:2: broken JSON in column 12: expected value"),
        (format!("{good}\n{}", &good[..20]), "rows.jsonl:2: broken JSON in column 20: EOF"),
        (format!("\n[{good},\n{good},\n{{\"prompt\" 1}}]"), "rows.jsonl:4: element 3: broken JSON in column 11"),
        (format!("[{good}"), "element 2: broken JSON"),
        (format!("[{good}]\n{good}"), "rows.jsonl:2: after the array: broken JSON in column 1: trailing"),
        ("[]".into(), "holds no rows"),
        ("\u{feff} \n\n".into(), "holds no rows"),
        (String::new(), "holds no rows"),
    ] {
        let error = file("rows.jsonl", &content).read(Format::Auto).unwrap_err();
        assert!(error.message.contains(expected) && error.kind == Kind::Input, "{content:?} gave {error}");
    }
    let mut packed = gzip(&format!("{good}\n").repeat(2000));
    packed.truncate(packed.len() / 2);
    let error = file("rows.jsonl.gz", packed).read(Format::Auto).unwrap_err();
    assert!(error.message.contains("damaged or cut short") && error.kind == Kind::Input, "{error}");
    let error = file("rows.jsonl", b"{\"prompt\": \"\xff\"}").read(Format::Auto).unwrap_err();
    assert!(error.message.contains("rows.jsonl:1: broken JSON"), "{error}");

    let folder = file("rows.jsonl", "");
    let source = |path: PathBuf| Source::new(path);
    let error = read(&source(folder.path.with_file_name("missing.jsonl"))).unwrap_err();
    assert!(error.message.contains("missing.jsonl") && error.kind == Kind::Input, "{error}");
    let error = read(&source(folder.path.parent().unwrap().into())).unwrap_err();
    assert!(error.message.contains("Is a directory") && error.kind == Kind::Input, "{error}");
    let error = read(&source(folder.path.join("below-a-file.jsonl"))).unwrap_err();
    assert!(error.message.contains("below-a-file") && error.kind == Kind::Input, "{error}");
}

#[test]
fn scoring_takes_single_rows_and_pairs_and_leaves_none_out() {
    let mixed = [
        json!({"prompt": "q", "answer": "a"}),
        json!({"prompt": [{"role": "user", "content": "q"}], "response": [{"role": "assistant", "content": "b"}]}),
        json!({"prompt": "q", "completion": ""}),
        json!({"prompt": "q", "chosen": "same", "rejected": "same"}),
        safety(1, 0, [true, true]),
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}]}),
    ];
    let text: String = mixed.iter().map(|row| format!("{row}\n")).collect();
    let pairs = read_for_scoring(&Source::new(&file("rows.jsonl", text).path)).unwrap().pairs;
    let answers: Vec<_> =
        pairs.iter().map(|pair| (pair.chosen.text(), pair.rejected.as_ref().map(Message::text))).collect();
    assert_eq!(
        answers,
        [("a", None), ("b", None), ("", None), ("same", Some("same")), ("one", Some("zero")), ("c", None)]
    );
    assert_eq!(pairs[5].prompt, Prompt::Messages(vec![turn("user", "q")]));

    let other = json!({"chosen": HH_CHOSEN, "rejected": HH_CHOSEN.replace("Hi", "Ho")}).to_string();
    for (row, expected) in [
        (other.as_str(), "different prompts"),
        ("{\"answer\": \"a\"}", "`prompt` is missing"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}", "expected the assistant's"),
    ] {
        let error = read_for_scoring(&Source::new(&file("rows.jsonl", row).path)).unwrap_err();
        assert!(error.message.contains(":1: ") && error.message.contains(expected), "{error}");
    }
}

proptest! {
    #![proptest_config(cases(200))]

    /// Whatever is cut off or mistyped in a file: rows or one input error, never a panic.
    #[test]
    fn cut_and_mistyped_rows_never_panic(
        which in 0..4_usize, format in 0..5_usize, cut in 0..400_usize, at in 0..400_usize, byte in any::<u8>(),
    ) {
        let conversation = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "é"}]);
        let row = [
            simple(),
            json!({"chosen": HH_CHOSEN, "rejected": HH_CHOSEN}),
            safety(0, 1, [false, true]),
            json!({"chosen": conversation, "rejected": conversation}),
        ][which].clone();
        let format = [Format::Auto, Format::Pairs, Format::Hh, Format::Helpful, Format::Safer][format];
        let mut content = format!("{row}\n{row}\n").into_bytes();
        content.truncate(cut.max(1));
        let at = at % content.len();
        content[at] = byte;
        let file = file("rows.jsonl", &content);
        if let Err(error) = file.read(format) {
            prop_assert_eq!(error.kind, Kind::Input);
            prop_assert!(error.message.contains("rows.jsonl") && error.hint.is_some(), "{}", error);
        }
        let _ = read_for_scoring(&Source::new(&file.path));
    }
}
