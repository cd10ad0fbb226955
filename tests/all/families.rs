//! Promise: a folder of each family loads as it comes (in one file or several, in any kind of numbers, with or without
//! heads) and is written unchanged; its config.json is read as Transformers reads it, and features that cannot be computed are
//! refused with their key.
//!
//! Not here: what the models compute (`golden.rs`).

use crate::golden::CASES;
use haf_dist::model::architecture::{Architecture, FAMILIES, Family, RopeScaling};
use haf_dist::model::declared::Rows;
use haf_dist::model::decoder::Part;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::{Entry, Mapped, write};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

pub fn config(case: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder(case).join("config.json")).unwrap()).unwrap()
}

/// The tensors of a case's file.
pub fn tensors(case: &str) -> BTreeMap<String, Tensor> {
    let file = Mapped::open(&folder(case).join("model.safetensors")).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
}

/// A folder with a case's config and these tensors, in one file or in so many with an index.
pub fn written(case: &str, tensors: &BTreeMap<String, Tensor>, files: usize) -> tempfile::TempDir {
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

pub fn load(folder: &Path, log_probs: bool) -> haf_dist::error::Result<Model> {
    Model::load(folder, LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Train, log_probs })
}

/// Every parameter as files have it.
pub fn values(model: &Model) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for segment in &model.segments {
        for (index, parameter) in segment.parameters().iter().enumerate() {
            all.insert(parameter.name.clone(), parameter.rows.to_file(&segment.value(index)));
        }
    }
    all
}

#[test]
fn every_folder_beside_make_golden_is_a_case_and_every_family_has_one() {
    let entries = fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap().path());
    let whole = entries.filter(|path| path.join("model.safetensors").exists());
    let made: BTreeSet<String> = whole.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(made, CASES.map(String::from).into(), "CASES of golden.rs are what make_golden.py makes");
    let cases = CASES.map(|case| config(case)["model_type"].as_str().unwrap().to_owned());
    let others = [
        ("ministral", "mistral-some-windows: Transformers reads either model_type as the other"),
        ("gemma3", "text_parts.rs: the text part is gemma3_text"),
        ("mistral3", "text_parts.rs: the text part is ministral3 or mistral"),
    ];
    for Family { model_type, .. } in FAMILIES {
        let known = cases.iter().any(|case| case == model_type) || others.iter().any(|(other, _)| *other == model_type);
        assert!(known, "{model_type} has no case in tests/golden/make_golden.py and CASES of golden.rs");
    }
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
fn rows_whose_columns_turn_with_their_neighbors_are_sorted_in_memory() {
    let model = load(&folder("glm4"), true).unwrap();
    let (_, block) = model.segment(Part::Block(0)).unwrap();
    // Heads of six rows, of which four turn: 0 with 1 and 2 with 3 in the file, 0 with 2 and 1 with 3 in memory.
    let rows = Rows::Neighbors { width: 6, turned: 4 };
    let order = Tensor::from_slice(&[0i64, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
    for (name, sorted) in
        [("q_proj.weight", true), ("k_proj.bias", true), ("v_proj.weight", false), ("v_proj.bias", false)]
    {
        let place = block.parameters().iter().position(|one| one.name.ends_with(name)).unwrap();
        assert_eq!(block.parameters()[place].rows, if sorted { rows } else { Rows::AsInMemory }, "{name}");
        let file = &tensors("glm4")[&block.parameters()[place].name];
        let (first, in_memory) = (file.narrow(0, 0, 12), block.value(place).narrow(0, 0, 12));
        assert_eq!(in_memory, if sorted { first.index_select(0, &order) } else { first.copy() }, "{name}");
        assert_eq!(in_memory != first, sorted, "{name}");
    }
    // Command R7B's block without a rotation has nothing to sort.
    let model = load(&folder("cohere2"), true).unwrap();
    let sorted = |block: usize| {
        let (_, segment) = model.segment(Part::Block(block)).unwrap();
        segment.parameters().iter().filter(|one| one.rows != Rows::AsInMemory).count()
    };
    assert_eq!((sorted(0), sorted(1)), (2, 0));
}

#[test]
fn heads_that_are_there_are_kept_and_a_missing_reward_head_is_zero() {
    for case in CASES {
        let mut held = tensors(case);
        let model = load(&folder(case), true).unwrap();
        let tied = model.architecture.tied;
        assert_eq!(config(case)["tie_word_embeddings"], tied, "{case}");
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
        // A tied head of Phi has a bias of its own.
        assert_eq!(refused.is_none(), tied && case != "phi-normed", "{case}: {refused:?}");
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

#[test]
fn both_spellings_of_a_config_are_one_model() {
    for (case, old) in [
        ("mistral", json!({"rope_theta": 10000.0, "rope_scaling": null})),
        ("phi", json!({"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_scaling": null})),
        ("glm", json!({"rope_theta": 100.0, "rope_scaling": null})),
        ("phi3", json!({"rope_theta": 10000.0, "rope_scaling": null})),
        ("gemma2", json!({"rope_theta": 10000.0, "layer_types": null})),
        ("granite", json!({"rope_theta": 10000.0, "rope_scaling": null})),
        (
            "phi3-longrope",
            json!({"partial_rotary_factor": 0.75, "rope_theta": 100.0,
                   "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0]}}),
        ),
        ("llama-dynamic", json!({"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 6.0}})),
        ("gpt-neox-parallel", json!({"rotary_emb_base": 10000, "rotary_pct": 0.5, "rope_scaling": null})),
    ] {
        let new = config(case);
        let mut spelled = new.clone();
        let keys = spelled.as_object_mut().unwrap();
        assert!(keys.shift_remove("rope_parameters").is_some());
        keys.extend(old.as_object().unwrap().clone());
        let [new, old] = [new, spelled].map(|config| Architecture::parse(&config.to_string()).unwrap());
        assert_eq!(new, old, "{case}");
    }
    // Where a file has both, Transformers takes the older one; Llama 3's original length may stand beside it or be missing.
    let mut config = config("llama-tied");
    config["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    config["rope_scaling"] = llama3;
    let original = |config: &Value| match &Architecture::parse(&config.to_string()).unwrap().rotations[0].rope.scaling {
        RopeScaling::Llama3 { original, .. } => *original,
        other => panic!("{other:?}"),
    };
    config["max_position_embeddings"] = json!(2048);
    assert_eq!(original(&config), 2048.0);
    config["rope_scaling"]["original_max_position_embeddings"] = json!(512);
    assert_eq!(original(&config), 512.0);
    config["original_max_position_embeddings"] = json!(256);
    assert_eq!(original(&config), 256.0);
}

#[test]
fn windows_are_where_the_family_or_the_list_says() {
    let windows = |case: &str, key: &str, value: Option<Value>| -> Vec<Option<usize>> {
        let mut config = config(case);
        config.as_object_mut().unwrap().shift_remove("layer_types");
        match value {
            Some(value) => config[key] = value,
            None => drop(config.as_object_mut().unwrap().shift_remove(key)),
        }
        let model = Architecture::parse(&config.to_string()).unwrap();
        model.blocks.iter().map(|block| block.rules.window).collect()
    };
    let list = |kinds: [&str; 2]| Some(json!(kinds.map(|kind| format!("{kind}_attention"))));
    for (case, key, value, expected) in [
        ("mistral", "sliding_window", Some(json!(4)), [Some(4), Some(4)]),
        ("mistral", "sliding_window", Some(json!(null)), [None, None]),
        ("mistral", "sliding_window", None, [Some(4096), Some(4096)]),
        ("phi3", "sliding_window", None, [None, None]),
        ("qwen2", "max_window_layers", Some(json!(1)), [None, Some(3)]),
        ("qwen2", "max_window_layers", Some(json!(0)), [Some(3), Some(3)]),
        ("qwen2", "use_sliding_window", Some(json!(false)), [None, None]),
        ("qwen2", "layer_types", list(["sliding", "full"]), [Some(3), None]),
        ("cohere2", "sliding_window_pattern", Some(json!(2)), [Some(3), None]),
        ("cohere2", "sliding_window_pattern", None, [Some(3), Some(3)]),
        ("gemma2", "layer_types", None, [Some(3), None]),
        ("gemma2", "layer_types", list(["full", "sliding"]), [None, Some(3)]),
    ] {
        assert_eq!(windows(case, key, value.clone()), expected, "{case}, {key} = {value:?}");
    }
}

#[test]
fn features_that_cannot_be_computed_are_refused_with_their_key() {
    let rope = |kind: &str| json!({"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0});
    let share = |share: f64| json!({"rope_theta": 10000.0, "partial_rotary_factor": share});
    for (case, key, value, says) in [
        ("llama-tied", "model_type", json!("gpt2"), "\"gpt2\""),
        ("llama-tied", "model_type", json!("qwen3_5"), "gated delta rule"),
        ("llama-tied", "model_type", json!("qwen3_5_moe"), "gated delta rule"),
        ("llama-tied", "model_type", json!("qwen3_next"), "gated delta rule"),
        ("olmoe", "clip_qkv", json!(8.0), "clip_qkv = 8.0"),
        ("llama-tied", "hidden_size", json!(0), "hidden_size = 0"),
        ("llama-tied", "hidden_size", json!(null), "hidden_size is missing"),
        ("llama-tied", "hidden_size", json!(1u64 << 62), "hidden_size = 4611686018427387904"),
        ("llama-tied", "num_hidden_layers", json!(1_000_000), "num_hidden_layers = 1000000"),
        ("llama-tied", "vocab_size", json!("many"), "vocab_size = \"many\""),
        ("llama-tied", "partial_rotary_factor", json!(0.5), "partial_rotary_factor = 0.5"),
        ("llama-tied", "rope_parameters", json!({"rope_type": "linear"}), "factor is missing"),
        ("mistral", "num_key_value_heads", json!(3), "num_key_value_heads = 3"),
        ("mistral", "sliding_window", json!(0), "sliding_window = 0"),
        ("qwen2", "layer_types", json!(["full_attention"]), "layer_types names 1"),
        ("qwen2", "layer_types", json!(["full_attention", "chunked_attention"]), "\"chunked_attention\""),
        ("qwen2", "use_sliding_window", json!(false), "no sliding_window"),
        ("qwen3", "head_dim", json!(5), "head_dim = 5"),
        ("phi", "qk_layernorm", json!("yes"), "qk_layernorm = \"yes\""),
        ("phi", "hidden_act", json!("relu6"), "hidden_act = \"relu6\""),
        ("phi3", "rope_parameters", rope("longrope"), "short_factor is missing"),
        ("phi3", "rope_parameters", rope("yarn"), "short_factor is missing"),
        ("phi3", "rope_parameters", rope("spiral"), "\"spiral\""),
        (
            "phi3-longrope",
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]}),
            "short_factor has 2 numbers, expected 4",
        ),
        ("llama-tied", "rope_parameters", json!({"llama_4_scaling_beta": 0.1}), "llama_4_scaling_beta"),
        ("olmo3", "rope_parameters", rope("default"), "two rotations"),
        ("ministral3", "rope_parameters", json!(null), "rope_parameters is missing"),
        ("cohere2", "use_qk_norm", json!(true), "use_qk_norm = true"),
        ("granite", "residual_multiplier", json!("half"), "residual_multiplier = \"half\""),
        ("gemma3", "model_type", json!("gemma3"), "text_config is missing"),
        ("gemma2", "query_pre_attn_scalar", json!(-1), "query_pre_attn_scalar = -1"),
        ("gemma2", "use_bidirectional_attention", json!(true), "use_bidirectional_attention = true"),
        ("gemma2", "rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "rope_parameters"),
        ("gemma3", "rope_parameters", rope("default"), "two rotations"),
        ("smollm3", "no_rope_layers", json!([1]), "no_rope_layers names 1 blocks"),
        ("gpt-neox-parallel", "rope_parameters", share(0.2), "partial_rotary_factor = 0.2"),
        (
            "gpt-neox-parallel",
            "rope_parameters",
            json!({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.5}),
            "two rotated columns",
        ),
        ("gpt-neox-parallel", "rope_parameters", share(1.5), "partial_rotary_factor = 1.5"),
        ("gpt-neox-parallel", "num_attention_heads", json!(5), "num_attention_heads = 5"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut changed = config(case);
        changed[key] = value.clone();
        fs::write(folder.path().join("config.json"), changed.to_string()).unwrap();
        let error = Architecture::open(folder.path()).expect_err(&format!("{case}, {key} = {value}"));
        assert!(error.message.contains("config.json: ") && error.message.contains(says), "{error}");
        assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        if value == "gpt2" {
            let families = FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
            assert!(error.hint.unwrap().contains(&families));
        }
        // Control: the case itself is read.
        Architecture::open(&self::folder(case)).unwrap();
    }
}

#[test]
fn no_value_of_any_key_is_met_with_a_panic() {
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(3),
        json!(1u64 << 20),
        json!(u64::MAX),
        json!(0.3),
        json!(1e300),
        json!("sliding_attention"),
        json!([]),
        json!(["full_attention", 1]),
        json!({"rope_type": 1}),
        json!({"rope_theta": -1, "partial_rotary_factor": 1e-9}),
    ];
    let (mut read, mut refused) = (0, 0);
    for case in CASES {
        let config = config(case);
        for key in config.as_object().unwrap().keys() {
            for value in &values {
                let mut changed = config.clone();
                changed[key] = value.clone();
                match Architecture::parse(&changed.to_string()) {
                    Ok(model) => {
                        let parts = Part::all(&model).into_iter();
                        read += parts.map(|part| part.parameters(&model).len()).sum::<usize>();
                        let layers = changed["num_hidden_layers"].as_u64();
                        assert_eq!(Some(model.blocks.len() as u64), layers);
                    }
                    Err(error) => {
                        assert!(error.exit_code() == 2 && !error.message.is_empty(), "{case}, {key} = {value}");
                        refused += 1;
                    }
                }
            }
        }
        for cut in (0..config.to_string().len()).step_by(7) {
            assert!(Architecture::parse(&config.to_string()[..cut]).is_err());
        }
    }
    // Both happen, and often.
    assert!(read > 10_000 && refused > 300, "{read}, {refused}");
}
