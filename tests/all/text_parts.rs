//! Promise: from the folder of a model that reads images too, the text model is read as it is, and written alone.
//!
//! Not here: folders of text models (`families.rs`).

use crate::families::{config, load, tensors, values, written};
use haf_dist::model::architecture::{Architecture, text_config};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use tch::{Device, Kind, Tensor};

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
    assert!(error.message.contains("text_config has model_type \"qwen3\""), "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("mistral or ministral3")));
}
