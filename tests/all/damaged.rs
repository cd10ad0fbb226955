//! Promise: whatever is cut off or changed in a config, in the files of a model, an adapter or a finished run, reading them
//! gives values or one input error with a hint; never a panic.
//!
//! Not here: rows of preference data (formats.rs, parquet.rs), files that are whole but of another model (the refusals'
//! own tests).

use crate::property;
use haf_dist::checkpoint::Changed;
use haf_dist::config::{Config, known_keys};
use haf_dist::data::tokenizer_files;
use haf_dist::error::{self, Result};
use haf_dist::metrics::{PairOutcome, RunFacts, read_pairs, write_pairs};
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::segment::Use;
use haf_dist::model::weights::LoadOptions;
use property::cases;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use std::cell::Cell;
use std::fs;
use std::path::Path;
use tch::{Device, Kind};

/// Bytes from a file's start that are changed: all of a text, the header of a safetensors file.
const BYTES: usize = 4096;

const MINIMAL: &str = "model.path = 'm'\ndata.train = [{ path = 't' }]\noutput.dir = 'o'\n";

fn parse(text: &str, set: &[String]) -> Result<Config> {
    Config::parse("a.toml", text, set)
}

/// Copies of golden models, an adapter beside its base, and a model whose weights an index names.
fn folders() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let copy = |from: &str, to: &str, names: &[(&str, &str)]| {
        fs::create_dir(root.path().join(to)).unwrap();
        for (name, new_name) in names {
            fs::copy(golden.join(from).join(name), root.path().join(to).join(new_name)).unwrap();
        }
    };
    let model = [("config.json", "config.json"), ("model.safetensors", "model.safetensors")];
    for case in ["llama-tied", "gemma2", "phi", "gpt-neox-parallel"] {
        copy(case, case, &model);
    }
    let adapter = ["adapter_config.json", "adapter_model.safetensors"].map(|name| (name, name));
    copy("lora-mlp", "lora-mlp", &adapter);
    copy("llama-tied", "indexed", &[("config.json", "config.json"), ("model.safetensors", "one.safetensors")]);
    let index = r#"{"metadata": {}, "weight_map": {"model.norm.weight": "one.safetensors"}}"#;
    fs::write(root.path().join("indexed/model.safetensors.index.json"), index).unwrap();
    root
}

fn load(folder: &Path) -> Result<()> {
    let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Evaluate, log_probs: true };
    adapter::load(&Origin::of(folder, None)?, options, None).map(drop)
}

/// Damages `file` in many ways; `read` must stand each of them, and refuse some. The same damage in every run.
fn stands_damage(file: &Path, read: impl Fn() -> Result<()>) {
    read().unwrap();
    let whole = fs::read(file).unwrap();
    let change = (any::<Index>(), prop_oneof![any::<u8>(), prop::sample::select(b"0123456789-e\"{}[],:tfn".to_vec())]);
    let damage = (proptest::collection::vec(change, 0..4), proptest::option::weighted(0.2, any::<Index>()));
    let refused = Cell::new(0);
    let result = TestRunner::new(cases(200)).run(&damage, |(changes, cut)| {
        let mut content = whole.clone();
        for (place, byte) in changes {
            let length = content.len().min(BYTES);
            content[place.index(length)] = byte;
        }
        if let Some(cut) = cut {
            content.truncate(cut.index(content.len()));
        }
        fs::write(file, &content).unwrap();
        if let Err(error) = read() {
            refused.set(refused.get() + 1);
            prop_assert_eq!(error.kind, error::Kind::Input, "{}", error);
            prop_assert!(error.hint.is_some(), "no hint: {}", error);
        }
        Ok(())
    });
    fs::write(file, &whole).unwrap();
    result.unwrap_or_else(|failure| panic!("{}: {failure}", file.display()));
    // Control: the damage was felt.
    assert!(refused.get() > 20, "{}: refused {} times", file.display(), refused.get());
}

#[test]
fn damaged_models_and_adapters_are_loaded_or_refused() {
    let root = folders();
    for (folder, name) in [
        ("llama-tied", "config.json"),
        ("llama-tied", "model.safetensors"),
        ("gemma2", "config.json"),
        ("phi", "config.json"),
        ("gpt-neox-parallel", "config.json"),
        ("lora-mlp", "adapter_config.json"),
        ("lora-mlp", "adapter_model.safetensors"),
        ("indexed", "model.safetensors.index.json"),
    ] {
        let folder = root.path().join(folder);
        stands_damage(&folder.join(name), || load(&folder));
    }
}

#[test]
fn damaged_tokenizers_read_texts_or_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let tokenizers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/added_tokens");
    let beside = [
        ("tokenizer_config.json", r#"{"pad_token": "<P>", "extra_special_tokens": ["<X>", {"content": "<Y>"}]}"#),
        ("special_tokens_map.json", r#"{"unk_token": {"content": "<unk>", "lstrip": true}, "image_token": "<img>"}"#),
        ("added_tokens.json", r#"{"<Q>": 90, "<R>": 91}"#),
    ];
    for name in ["lower", "bytes", "pieces"] {
        let folder = root.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::copy(tokenizers.join(format!("{name}.json")), folder.join("tokenizer.json")).unwrap();
        for (file, content) in beside {
            fs::write(folder.join(file), content).unwrap();
        }
        let read = || {
            let opened = tokenizer_files::open(&folder)?;
            tokenizer_files::encode(&opened.tokenizer, "the <X> of <q> A", true).map(drop)
        };
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
            stands_damage(&folder.join(file), read);
        }
    }
}

#[test]
fn damaged_outcomes_of_a_run_are_read_or_refused() {
    let run = tempfile::tempdir().unwrap();
    let config = parse(MINIMAL, &[]).unwrap();
    let facts = RunFacts { step: 4, data_key: "order".into(), model_key: "model".into(), combined: None, config };
    let outcome = |index: usize| PairOutcome {
        pair: format!("{index}"),
        prompt: format!("{:016x}", index / 2),
        domain: "d".into(),
        margin: Some(0.5 - index as f64),
        implicit_margin: None,
    };
    write_pairs(run.path(), &facts, &(0..8).map(outcome).collect::<Vec<_>>()).unwrap();
    stands_damage(&run.path().join("test-pairs.jsonl"), || read_pairs(run.path(), Changed::Allowed).map(drop));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn no_text_and_no_override_panics(text in "\\PC*", set in "\\PC*") {
        for error in [parse(&text, &[]).err(), parse(MINIMAL, &[set]).err()].into_iter().flatten() {
            prop_assert!(error.hint.is_some(), "no hint: {}", error);
        }
    }

    #[test]
    fn no_mutation_of_a_good_file_panics(at in 0usize..10_000, remove in 0usize..20, put in "[\\[\\]{}=.\"'#\\n\\PC]{0,6}") {
        let text: Vec<char> = include_str!("../../configs/reference.toml").chars().collect();
        let at = at % text.len();
        let end = (at + remove).min(text.len());
        let mutated: String = text[..at].iter().copied().chain(put.chars()).chain(text[end..].iter().copied()).collect();
        if let Ok(config) = parse(&mutated, &[]) {
            // Whatever is taken can be written and read again.
            prop_assert_eq!(parse(&config.resolved_toml().unwrap(), &[]).unwrap(), config);
        }
    }

    #[test]
    fn no_value_of_a_known_key_panics(key in prop::sample::select(known_keys()), value in "[-0-9a-z.\"{}\\[\\]]{0,8}") {
        let _ = parse(MINIMAL, &[format!("{key}={value}")]);
    }
}
