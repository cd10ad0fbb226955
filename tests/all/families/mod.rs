//! Promise: a folder of each family loads as it comes (in one file or several, in any kind of numbers, with or without
//! heads) and goes back as it came.
//!
//! Not here: its config.json (`configs.rs`), and what the models compute (`golden/`).

mod configs;

use haf_dist::model::architecture::{Architecture, text_config};
use haf_dist::model::declared::Rows;
use haf_dist::model::decoder::Part;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::{Entry, Mapped, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const CASES: [&str; 20] = [
    "llama-tied",
    "llama-untied",
    "mistral",
    "mistral-some-windows",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gemma2",
    "gemma3",
    "olmo2",
    "olmo3",
    "ministral3",
    "llama-dynamic",
    "phi3-longrope",
    "granite",
    "exaone4",
    "smollm3",
    "gpt-neox-odd",
    "gpt-neox-parallel",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn config(case: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder(case).join("config.json")).unwrap()).unwrap()
}

/// The tensors of a case's file.
fn tensors(case: &str) -> BTreeMap<String, Tensor> {
    let file = Mapped::open(&folder(case).join("model.safetensors")).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
}

/// A folder with a case's config and these tensors, in one file or in so many with an index.
fn written(case: &str, tensors: &BTreeMap<String, Tensor>, files: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(self::folder(case).join("config.json"), folder.path().join("config.json")).unwrap();
    let name = |file: usize| match files {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{file}-of-{files}.safetensors"),
    };
    let mut places = BTreeMap::new();
    for file in 0..files {
        let mine = tensors.iter().enumerate().filter(|(index, _)| index % files == file);
        let mine: Vec<Entry> = mine.map(|(_, (name, tensor))| Entry::of(name, tensor)).collect();
        places.extend(mine.iter().map(|entry| (entry.name.clone(), name(file))));
        write(&folder.path().join(name(file)), &mine, &BTreeMap::new()).unwrap();
    }
    if files > 1 {
        let index = json!({"metadata": {}, "weight_map": places});
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
    folder
}

fn load(folder: &Path, log_probs: bool) -> haf_dist::error::Result<Model> {
    Model::load(folder, LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Train, log_probs })
}

/// Every parameter as files have it.
fn values(model: &Model) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for segment in &model.segments {
        for (index, parameter) in segment.parameters().iter().enumerate() {
            all.insert(parameter.name.clone(), parameter.rows.to_file(&segment.value(index)));
        }
    }
    all
}

#[test]
fn files_of_every_kind_load_to_what_they_hold() {
    for case in CASES {
        let held = tensors(case);
        for (kind, files) in [(Kind::Float, 1), (Kind::Float, 3), (Kind::Half, 1), (Kind::BFloat16, 2)] {
            let rounded: BTreeMap<_, _> =
                held.iter().map(|(name, value)| (name.clone(), value.to_kind(kind))).collect();
            let loaded = values(&load(written(case, &rounded, files).path(), true).unwrap());
            for (name, value) in &rounded {
                assert_eq!(loaded[name], value.to_kind(Kind::Float), "{case}, {kind:?}, {files} files: {name}");
            }
            // Nothing but the reward head is there besides.
            assert_eq!(loaded.len(), held.len() + 1, "{case}");
            // Control: rounding is seen.
            let exact = held.iter().all(|(name, value)| loaded[name] == *value);
            assert_eq!(exact, kind == Kind::Float, "{case}, {kind:?}");
        }
    }
}

#[test]
fn rows_that_files_keep_head_by_head_are_sorted_in_memory() {
    let model = load(&folder("gpt-neox-parallel"), true).unwrap();
    let (_, block) = model.segment(Part::Block(0)).unwrap();
    let place = block.parameters().iter().position(|one| one.name.ends_with("query_key_value.weight")).unwrap();
    let counts = model.architecture.blocks[0].heads;
    let [heads, width] = [counts.query, counts.width].map(|size| size as i64);
    assert_eq!(block.parameters()[place].rows, Rows::HeadByHead(heads));
    let file = &tensors("gpt-neox-parallel")[&block.parameters()[place].name];
    // The keys of the second head: in the file after its queries, in memory after all queries and the first head's.
    let (in_file, in_memory) = (file.narrow(0, 3 * width + width, width), heads * width + width);
    assert_eq!(block.value(place).narrow(0, in_memory, width), in_file);
    assert_ne!(&block.value(place), file);
}

#[test]
fn heads_that_are_there_are_kept_and_a_missing_reward_head_is_zero() {
    for case in CASES {
        let mut held = tensors(case);
        let model = load(&folder(case), true).unwrap();
        let tied = model.architecture.tied;
        let embedded =
            ["llama-tied", "qwen2", "gemma2", "gemma3", "smollm3", "llama-dynamic", "phi3-longrope", "granite"];
        assert_eq!(tied, embedded.contains(&case));
        assert_eq!(model.segment(Part::LanguageModelHead).is_none(), tied, "{case}");
        assert!(!model.had_reward_head && values(&model)["score.weight"].abs().max().double_value(&[]) == 0.0);

        let head = Tensor::arange(model.architecture.width as i64, (Kind::Float, Device::Cpu)).view([1, -1]);
        held.insert("score.weight".into(), head.copy());
        let model = load(written(case, &held, 1).path(), true).unwrap();
        assert!(model.had_reward_head && values(&model)["score.weight"] == head, "{case}");

        // A reward model's folder may lack the language-model head, as long as nobody asks for log-probs.
        held.retain(|name, _| !name.starts_with("lm_head") && !name.starts_with("embed_out"));
        let folder = written(case, &held, 1);
        assert!(load(folder.path(), false).unwrap().segment(Part::LanguageModelHead).is_none(), "{case}");
        let refused = load(folder.path(), true).err().map(|error| error.message);
        assert_eq!(refused.is_none(), tied, "{case}: {refused:?}");
    }
}

#[test]
fn a_head_is_known_by_each_of_its_names() {
    let mut held = tensors("gpt-neox-parallel");
    let head = held.remove("embed_out.weight").unwrap();
    held.insert("lm_head.weight".into(), head.copy());
    let loaded = values(&load(written("gpt-neox-parallel", &held, 1).path(), true).unwrap());
    assert_eq!(loaded["embed_out.weight"], head);
}

/// The text model's folder as a part of a larger one: its keys within, its tensors under other names, and others beside.
#[test]
fn the_text_part_of_a_folder_that_reads_images_is_the_text_model() {
    for (case, whole) in [("gemma3", "gemma3"), ("ministral3", "mistral3")] {
        let inner = config(case);
        let outer = json!({"model_type": whole, "architectures": ["Some"], "text_config": inner, "eos_token_id": [1, 2],
                           "vision_config": {"model_type": "siglip"}, "tie_word_embeddings": inner["tie_word_embeddings"]});
        let alone = Architecture::parse(&inner.to_string()).unwrap();
        let part = Architecture::parse(&outer.to_string()).unwrap();
        assert_eq!(part, Architecture { part_of: Some(whole), ..alone.clone() });
        // What goes out is a text model's, with the whole's tokens.
        let exported = Value::Object(text_config(outer.as_object().unwrap().clone()));
        assert_eq!(Architecture::parse(&exported.to_string()).unwrap(), alone);
        assert_eq!((&exported["eos_token_id"], exported.get("vision_config")), (&json!([1, 2]), None));

        for prefix in ["language_model.model.", "model.language_model."] {
            let rename = |name: String| match name.strip_prefix("model.") {
                Some(rest) => format!("{prefix}{rest}"),
                None => format!("language_model.{name}"),
            };
            let mut held: BTreeMap<_, _> =
                tensors(case).into_iter().map(|(name, value)| (rename(name), value)).collect();
            held.insert("vision_tower.layers.0.norm.weight".into(), Tensor::zeros([3], (Kind::Float, Device::Cpu)));
            let folder = written(case, &held, 1);
            fs::write(folder.path().join("config.json"), outer.to_string()).unwrap();
            let loaded = values(&load(folder.path(), true).unwrap());
            for (name, value) in tensors(case) {
                assert_eq!(loaded[&name], value, "{case}, {prefix}: {name}");
            }
        }
    }
    let other = json!({"model_type": "mistral3", "text_config": {"model_type": "qwen3"}});
    let error = Architecture::parse(&other.to_string()).unwrap_err();
    assert!(error.message.contains("model_type \"qwen3\", expected mistral or ministral3"), "{error}");
}
