//! Reads and writes PEFT's `adapter_config.json`; unknown keys that would change an adapter's mathematics are refused by
//! name.
//!
//! Not here: its weights (`adapter.rs`).

use super::names::HEADS;
use crate::error::{Error, Result};
use crate::files;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file that makes a folder an adapter.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// PEFT's prefix of the names of the base's modules.
pub const PREFIX: &str = "base_model.model.";

/// The largest file that is read.
const MOST_BYTES: u64 = 16 << 20;

/// Keys that do not affect the mathematics, or that are read below.
const KNOWN: &[&str] = &[
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "use_rslora",
    // The tensors show which modules have adapters.
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "lora_dropout",
    "init_lora_weights",
    // Details of features that other keys turn on, or of other libraries.
    "megatron_core",
    "qalora_group_size",
    "layers_pattern",
    "ensure_weight_tying",
    "runtime_config",
];

/// Initializations of an adapter that do not change the base.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// The keys of the file that are used here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct PeftConfig {
    peft_type: Option<String>,
    task_type: Option<String>,
    /// The base: a folder, or a name on the hub.
    pub(crate) base_model_name_or_path: Option<String>,
    /// The revision of a base on the hub.
    pub(crate) revision: Option<String>,
    /// Rank.
    pub(crate) r: usize,
    /// The scale, times the rank or its root.
    pub(crate) lora_alpha: f64,
    /// Whether the scale is alpha / sqrt(rank).
    #[serde(default)]
    pub(crate) use_rslora: bool,
    /// Share of an adapter's input that was dropped out in its training.
    #[serde(default)]
    pub(crate) lora_dropout: f64,
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    init_lora_weights: Value,
}

impl PeftConfig {
    /// Whether a folder is an adapter.
    pub(crate) fn is_in(folder: &Path) -> bool {
        folder.join(CONFIG).is_file()
    }

    /// Reads and checks the file of a folder.
    ///
    /// # Errors
    /// A missing or broken file, or one that asks for an unknown feature; the key is named.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = files::read_within(&path, MOST_BYTES)?;
        Self::parse(&text).map_err(|error| error.at(path.display()))
    }

    /// Whether a reward head was trained with the adapter, and is saved with it.
    pub(crate) fn saves_a_head(&self) -> bool {
        self.modules_to_save.iter().flatten().next().is_some()
    }

    /// Whether it was made for a model with a head.
    pub(crate) fn is_of_a_classifier(&self) -> bool {
        self.task_type.as_deref() == Some("SEQ_CLS")
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let broken = |error| {
            Error::input(format!("not an adapter's config: {error}")).hint("write it with PEFT's save_pretrained")
        };
        let keys: Map<String, Value> = serde_json::from_slice(text).map_err(broken)?;
        let config: Self = serde_json::from_slice(text).map_err(broken)?;
        let refuse = |key: &str, value: &Value| {
            Err(Error::input(format!("{key} = {value} is not supported: this program knows plain LoRA"))
                .hint("merge the adapter into its base with PEFT (merge_and_unload), and use that folder"))
        };
        if config.peft_type.as_deref() != Some("LORA") {
            return refuse("peft_type", &json!(config.peft_type));
        }
        if !matches!(config.task_type.as_deref(), None | Some("SEQ_CLS" | "CAUSAL_LM")) {
            return refuse("task_type", &json!(config.task_type));
        }
        if config.r == 0 || !(config.lora_alpha > 0.0 && config.lora_alpha.is_finite()) {
            return Err(Error::input(format!("r = {} and lora_alpha = {}", config.r, config.lora_alpha))
                .hint("both must be above 0"));
        }
        let other = |name: &&String| !HEADS.contains(&name.as_str());
        if let Some(module) = config.modules_to_save.iter().flatten().find(other) {
            return refuse("modules_to_save", &json!(module));
        }
        if let Value::String(start) = &config.init_lora_weights
            && !PLAIN_STARTS.contains(&start.as_str())
        {
            return refuse("init_lora_weights", &config.init_lora_weights);
        }
        for (key, value) in keys.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str())) {
            if !is_neutral(value) {
                return refuse(key, value);
            }
        }
        Ok(config)
    }
}

/// Whether a feature is off with this value.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text == "none",
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Number(_) => false,
    }
}

/// What the file says about an adapter.
pub(crate) struct Written<'a> {
    /// The base, and its revision if it has a name on the hub.
    pub(crate) base: (&'a str, Option<&'a str>),
    /// Rank.
    pub(crate) rank: usize,
    /// The scale, times the rank or its root.
    pub(crate) alpha: f64,
    /// Whether the scale is alpha / sqrt(rank).
    pub(crate) use_rslora: bool,
    /// Last names of the adapted modules.
    pub(crate) targets: &'a [String],
}

impl Written<'_> {
    /// The file's content, with the keys that PEFT needs and those that turn other features off.
    pub(crate) fn to_json(&self) -> Value {
        // PEFT writes a whole number as one.
        let alpha = if self.alpha.fract() == 0.0 { json!(self.alpha as i64) } else { json!(self.alpha) };
        json!({
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": self.base.0,
            "revision": self.base.1,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": alpha,
            "use_rslora": self.use_rslora,
            "target_modules": self.targets,
            "modules_to_save": ["score"],
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "lora_bias": false,
            "lora_dropout": 0.0,
            "use_dora": false,
            "rank_pattern": {},
            "alpha_pattern": {},
            "layers_to_transform": null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_configs_are_read_and_unknown_features_are_refused_by_name() {
        let written =
            Written { base: ("base", None), rank: 8, alpha: 12.5, use_rslora: true, targets: &["q_proj".to_string()] };
        let good = written.to_json();
        let config = PeftConfig::parse(good.to_string().as_bytes()).unwrap();
        assert_eq!((config.r, config.lora_alpha, config.use_rslora), (8, 12.5, true));
        assert_eq!(config.base_model_name_or_path.as_deref(), Some("base"));
        for (key, value) in [
            ("bias", json!("all")),
            ("use_dora", json!(true)),
            ("rank_pattern", json!({"q_proj": 4})),
            ("alpha_pattern", json!({"q_proj": 4})),
            ("layers_to_transform", json!([0, 1])),
            ("layers_to_transform", json!(0)),
            ("modules_to_save", json!(["score", "embed_tokens"])),
            ("fan_in_fan_out", json!(true)),
            ("peft_type", json!("IA3")),
            ("task_type", json!("SEQ_2_SEQ_LM")),
            ("init_lora_weights", json!("pissa")),
            ("a_feature_of_tomorrow", json!({"on": true})),
        ] {
            let mut bad = good.clone();
            bad[key] = value.clone();
            let error = PeftConfig::parse(bad.to_string().as_bytes()).unwrap_err();
            assert!(error.message.contains(key) && error.hint.is_some(), "{key}: {error}");
        }
        for (key, value) in [
            ("modules_to_save", Value::Null),
            ("modules_to_save", json!(["classifier", "score"])),
            ("lora_dropout", json!(0.1)),
            ("init_lora_weights", json!("gaussian")),
            ("task_type", json!("CAUSAL_LM")),
            ("a_feature_of_tomorrow", Value::Null),
        ] {
            let mut other = good.clone();
            other[key] = value;
            PeftConfig::parse(other.to_string().as_bytes()).unwrap();
        }
        assert!(PeftConfig::parse(b"[]").is_err() && PeftConfig::parse(br#"{"r": "8"}"#).is_err());
    }
}
