//! Files of a model's folder: config.json, safetensors and their index, adapters, tokenizers; and the JSON of a checkpoint.

use crate::bounds::{Verdict, fuzz, judged};
use crate::mutate::{Form, Seed};
use crate::tiny::{VOCABULARY, Workspace, tokenizer};
use haf_dist::checkpoint::{
    AsTrained, Changed, FileCheck, SelfTest, end_tokens, load_state, pad_token, special_tokens,
};
use haf_dist::config::TemplateKind;
use haf_dist::data::template::Template;
use haf_dist::data::tokenizer_files;
use haf_dist::error::Result;
use haf_dist::metrics::{Jsonl, read_pairs};
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::segment::Use;
use haf_dist::model::weights::LoadOptions;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

const OF_MODELS: &[&str] = &[
    "\"model_type\": \"gemma2\"",
    "\"model_type\": \"phi\"",
    "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}",
    "\"num_hidden_layers\": 1048576",
    "\"hidden_size\": 0",
    "\"vocab_size\": 4294967295",
    "\"data_offsets\":[0,18446744073709551615]",
    "\"dtype\":\"F8_E4M3\"",
    "\"shape\":[]",
    "\"shape\":[4294967296,4294967296]",
    "\"__metadata__\":{}",
    "\"target_modules\": \".*\"",
    "\"r\": 0",
    "\"../model.safetensors\"",
    "\"use_dora\": true",
];

fn load(folder: &Path) -> Result<()> {
    let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Evaluate, log_probs: true };
    adapter::load(&Origin::of(folder, None)?, options, None).map(drop)
}

/// A file in a folder, and how its folder is read.
struct Place {
    path: PathBuf,
    whole: Vec<u8>,
}

/// Puts changed files into their places, one at a time, and reads the folder of each.
fn in_place(
    kind: &str,
    few: usize,
    files: &[(PathBuf, Form)],
    words: &'static [&'static str],
    read: impl Fn(&Path) -> Verdict,
) {
    let places: Vec<_> =
        files.iter().map(|(path, _)| Place { path: path.clone(), whole: fs::read(path).unwrap() }).collect();
    let seeds: Vec<_> =
        files.iter().zip(&places).map(|((_, form), place)| Seed::new(*form, place.whole.clone()).with(words)).collect();
    fuzz(kind, few, &seeds, |number, input| {
        let Place { path, whole } = &places[number];
        fs::write(path, input).unwrap();
        let verdict = read(path);
        fs::write(path, whole).unwrap();
        verdict
    });
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
    for case in
        ["llama-tied", "gemma2", "gemma3", "phi", "phi3", "gpt-neox-parallel", "smollm3", "mistral-some-windows"]
    {
        copy(case, case, &["config.json", "model.safetensors"].map(|name| (name, name)));
    }
    copy("lora-mlp", "lora-mlp", &["adapter_config.json", "adapter_model.safetensors"].map(|name| (name, name)));
    copy("llama-tied", "indexed", &[("config.json", "config.json"), ("model.safetensors", "one.safetensors")]);
    let bytes = fs::read(golden.join("llama-tied/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let map: serde_json::Map<_, _> =
        tensors.names().into_iter().map(|name| (name.to_owned(), "one.safetensors".into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(root.path().join("indexed/model.safetensors.index.json"), index.to_string()).unwrap();
    root
}

#[test]
fn model_configs() {
    let root = folders();
    let of = |folder: &str| (root.path().join(folder).join("config.json"), Form::Json);
    let files =
        ["llama-tied", "gemma2", "gemma3", "phi", "phi3", "gpt-neox-parallel", "smollm3", "mistral-some-windows"];
    in_place("config.json", 100, &files.map(of), OF_MODELS, |path| judged(load(path.parent().unwrap())));
}

#[test]
fn weights() {
    let root = folders();
    let of = |(folder, name): (&str, &str)| (root.path().join(folder).join(name), Form::Safetensors);
    let files = [
        ("llama-tied", "model.safetensors"),
        ("lora-mlp", "adapter_model.safetensors"),
        ("indexed", "one.safetensors"),
    ];
    in_place("safetensors", 100, &files.map(of), OF_MODELS, |path| judged(load(path.parent().unwrap())));
}

#[test]
fn indices() {
    let root = folders();
    let file = (root.path().join("indexed/model.safetensors.index.json"), Form::Json);
    in_place("index.json", 100, &[file], OF_MODELS, |path| judged(load(path.parent().unwrap())));
}

#[test]
fn adapters() {
    let root = folders();
    let file = (root.path().join("lora-mlp/adapter_config.json"), Form::Json);
    in_place("adapter_config.json", 100, &[file], OF_MODELS, |path| judged(load(path.parent().unwrap())));
}

#[test]
fn tokenizers() {
    const WORDS: &[&str] = &[
        "\"type\": \"BPE\"",
        "\"type\": \"Unigram\"",
        "\"type\": \"WordPiece\"",
        "\"type\":\"Sequence\"",
        "\"Regex\":\"(a*)*b\"",
        "\"Regex\":\"(?<=a\"",
        "\"Regex\":\"\"",
        "\"String\":\"\"",
        "\"byte_fallback\": true",
        "\"merges\": [\"a b\"]",
        "\"id\": 4294967295",
        "\"dropout\": 0.5",
        "\"pattern\"",
        "\"max_input_chars_per_word\":0",
        "\"type\":\"Metaspace\",\"replacement\":\"\"",
        "\"type\":\"TemplateProcessing\"",
        "\"precompiled_charsmap\":\"AAAA\"",
        "\"ByteLevel\"",
        "\"unk_id\": 99999",
    ];
    let root = tempfile::tempdir().unwrap();
    let given = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/added_tokens");
    let beside = [
        (
            "tokenizer_config.json",
            r#"{"pad_token": "<P>", "extra_special_tokens": ["<X>", {"content": "<Y>"}], "chat_template": "a"}"#,
        ),
        ("special_tokens_map.json", r#"{"unk_token": {"content": "<unk>", "lstrip": true}, "image_token": "<img>"}"#),
        ("added_tokens.json", r#"{"<Q>": 90, "<R>": 91}"#),
    ];
    let mut files = Vec::new();
    for name in ["lower", "bytes", "pieces", "letters"] {
        let folder = root.path().join(name);
        fs::create_dir(&folder).unwrap();
        let path = folder.join("tokenizer.json");
        match name {
            "letters" => fs::write(&path, tokenizer().to_string()).unwrap(),
            _ => drop(fs::copy(given.join(format!("{name}.json")), &path).unwrap()),
        }
        files.push((path, Form::Json));
        for (file, content) in beside {
            fs::write(folder.join(file), content).unwrap();
            if name == "lower" {
                files.push((folder.join(file), Form::Json));
            }
        }
    }
    let text = "the <X> of <q> A\n\n é 1234 \u{1f980}".repeat(20);
    in_place("tokenizer.json", 300, &files, WORDS, |path| {
        let folder = path.parent().unwrap();
        let encoded =
            tokenizer_files::open(folder).and_then(|opened| tokenizer_files::encode(&opened.tokenizer, &text, true));
        match (judged(encoded), judged(Template::open(TemplateKind::Chat, folder))) {
            (Verdict::Wrong(why), _) | (_, Verdict::Wrong(why)) => Verdict::Wrong(why),
            (read, _) => read,
        }
    });
}

#[test]
fn checkpoints() {
    let trained = Workspace::trained(1);
    let run = trained.path("run");
    let step = run.join("step-6");
    let mut files = Vec::new();
    for folder in [run.clone(), step.clone(), step.join("trainer")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let form = match path.extension().and_then(|ending| ending.to_str()) {
                Some("json") => Form::Json,
                Some("jsonl") => Form::JsonLines,
                Some("toml") => Form::Text,
                _ => continue,
            };
            files.push((path, form));
        }
    }
    files.sort_by(|one, other| one.0.cmp(&other.0));
    assert!(files.len() > 8, "{files:?}", files = files.iter().map(|file| &file.0).collect::<Vec<_>>());
    let mark = load_state(&step).unwrap().metrics;
    in_place(
        "checkpoints",
        200,
        &files,
        &["\"format\": 2", "\"step\": -1", "\"xxh3\": \"\"", "\"../../x\": {\"bytes\": 0, \"xxh3\": \"0\"}"],
        |_| {
            let checked = FileCheck::begin([step.as_path()], Changed::Refused).and_then(FileCheck::finish);
            // What the check refuses is read all the same where the user allows it.
            let verdicts = [
                judged(checked),
                judged(load_state(&step)),
                judged(AsTrained::of_checkpoint(&step)),
                judged(SelfTest::read(&step).and_then(|test| match test {
                    Some(test) => test.check(&step, usize::MAX, VOCABULARY),
                    None => Ok(()),
                })),
                judged(read_pairs(&run, Changed::Allowed)),
                judged(end_tokens(&step)),
                judged(pad_token(&step)),
                judged(special_tokens(&step)),
                judged(Jsonl::check(&run, 6, mark.as_ref())),
                judged(load(&step)),
            ];
            let mut whole = true;
            for verdict in verdicts {
                match verdict {
                    Verdict::Taken => {}
                    Verdict::Refused => whole = false,
                    wrong => return wrong,
                }
            }
            if whole { Verdict::Taken } else { Verdict::Refused }
        },
    );
}
