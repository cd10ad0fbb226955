//! Promise: tokens that a folder declares outside tokenizer.json have the same ids as in Transformers, and are special as there;
//! a file that cannot be read in that way is refused, and a regular expression that backtracks endlessly is an error within
//! seconds.
//!
//! The truth is made by added_tokens/make_truth.py. Not here: chat templates (token_truth.rs).

use haf_dist::data::tokenizer_files::{encode, open};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Truth {
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    tokenizer: String,
    name: String,
    files: Map<String, Value>,
    added: BTreeMap<u32, String>,
    special: Vec<u32>,
    /// Of each text.
    ids: Vec<Vec<u32>>,
}

fn base(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/added_tokens").join(format!("{name}.json"))
}

/// A folder with one of the tokenizers and these files beside it.
fn folder(tokenizer: &str, files: &Map<String, Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(base(tokenizer), folder.path().join("tokenizer.json")).unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

fn one_file(name: &str, content: Value) -> Map<String, Value> {
    Map::from_iter([(name.to_string(), content)])
}

#[test]
fn ids_and_special_tokens_are_those_of_transformers() {
    let truth: Truth = serde_json::from_str(&fs::read_to_string(base("truth")).unwrap()).unwrap();
    let mut unlike_the_file_alone = 0;
    for case in &truth.cases {
        let tokenizer = open(folder(&case.tokenizer, &case.files).path()).unwrap().tokenizer;
        let alone = open(folder(&case.tokenizer, &Map::new()).path()).unwrap().tokenizer;
        let place = format!("{}, {}", case.tokenizer, case.name);
        let decoder = tokenizer.get_added_tokens_decoder();
        let added: BTreeMap<u32, String> = decoder.iter().map(|(id, token)| (*id, token.content.clone())).collect();
        assert_eq!(added, case.added, "{place}");
        let mut special: Vec<u32> = decoder.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        special.sort_unstable();
        assert_eq!(special, case.special, "{place}");
        for (text, expected) in truth.texts.iter().zip(&case.ids) {
            assert_eq!(encode(&tokenizer, text, false).unwrap(), *expected, "{place}: {text:?}");
            unlike_the_file_alone += usize::from(encode(&alone, text, false).unwrap() != *expected);
        }
    }
    // Control: most texts have other ids where tokenizer.json alone is read.
    assert!(truth.cases.len() == 99 && unlike_the_file_alone > 150, "{unlike_the_file_alone}");
}

#[test]
fn objects_of_older_versions_are_read_where_transformers_refuses_them() {
    let files = Map::from_iter([
        ("tokenizer_config.json".to_string(), json!({"pad_token": {"content": "<P>", "lstrip": false}})),
        ("special_tokens_map.json".to_string(), json!({"additional_special_tokens": [{"content": "<X>"}]})),
    ]);
    let tokenizer = open(folder("lower", &files).path()).unwrap().tokenizer;
    let id = |text: &str| tokenizer.token_to_id(text).unwrap();
    assert_eq!(encode(&tokenizer, "<P><X>", false).unwrap(), [id("<P>"), id("<X>")]);
    assert!(tokenizer.get_added_tokens_decoder()[&id("<X>")].special);
}

#[test]
fn the_fingerprint_follows_every_file() {
    let of = |files: Map<String, Value>| open(folder("lower", &files).path()).unwrap().fingerprint;
    let config = |content: Value| of(one_file("tokenizer_config.json", content));
    let none = of(Map::new());
    assert_eq!(none, config(json!({"model_max_length": 5})));
    let listed = json!({"additional_special_tokens": ["<X>"]});
    let flagged = json!({"additional_special_tokens": [{"content": "<X>", "lstrip": true}]});
    assert!(none != config(listed.clone()) && config(listed) != config(flagged));
}

#[test]
fn files_that_cannot_be_read_so_are_refused_by_name() {
    let refused = |folder: &Path| {
        let error = open(folder).err().unwrap();
        assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        error
    };
    for (name, content, says) in [
        ("tokenizer_config.json", json!([]), "tokenizer_config.json"),
        ("tokenizer_config.json", json!({"split_special_tokens": true}), "split_special_tokens"),
        ("tokenizer_config.json", json!({"added_tokens_decoder": ["<X>"]}), "added_tokens_decoder"),
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"x": {"content": "<X>"}}}), "\"x\""),
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"3": "<X>"}}), "\"3\""),
        ("tokenizer_config.json", json!({"pad_token": 3}), "pad_token holds 3"),
        ("tokenizer_config.json", json!({"extra_special_tokens": [3]}), "extra_special_tokens holds 3"),
        ("added_tokens.json", json!({"<X>": -1}), "\"<X>\" has the id -1"),
        ("special_tokens_map.json", json!("x"), "special_tokens_map.json"),
    ] {
        let error = refused(folder("lower", &one_file(name, content)).path());
        assert!(error.message.contains(says), "{error}");
    }
    // BPE that drops merges at random, as some are trained.
    let mut random: Value = serde_json::from_str(&fs::read_to_string(base("bytes")).unwrap()).unwrap();
    random["model"]["dropout"] = json!(0.1);
    let changed = folder("bytes", &one_file("tokenizer.json", random));
    assert!(refused(changed.path()).message.contains("dropout = 0.1"));

    let empty = tempfile::tempdir().unwrap();
    let hint = refused(empty.path()).hint.unwrap();
    assert!(hint.contains("save_pretrained") && !hint.contains("sentencepiece"), "{hint}");
    fs::write(empty.path().join("tokenizer.model"), "x").unwrap();
    let hint = refused(empty.path()).hint.unwrap();
    assert!(hint.contains("save_pretrained") && hint.contains("sentencepiece"), "{hint}");
    // What is no file is not waited for.
    fs::create_dir(empty.path().join("tokenizer.json")).unwrap();
    let message = refused(empty.path()).message;
    assert!(message.contains("directory"), "{message}");
}

#[test]
fn an_expression_that_backtracks_without_end_is_an_error_in_seconds() {
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(base("lower")).unwrap()).unwrap();
    // It exceeds the engine's bound on the steps from one start.
    tokenizer["pre_tokenizer"]["pattern"] = json!({"Regex": "(a+)+b|."});
    let opened = open(folder("lower", &one_file("tokenizer.json", tokenizer.clone())).path()).unwrap();
    let started = Instant::now();
    let error = encode(&opened.tokenizer, &"a".repeat(40), false).unwrap_err();
    assert!(error.message.contains("gives up") && error.message.contains("retry-limit"), "{error}");
    assert!(error.exit_code() == 2 && started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    // Control: the tokenizer itself is sound.
    encode(&opened.tokenizer, "ab", false).unwrap();
}
