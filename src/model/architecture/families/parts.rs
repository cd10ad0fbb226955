//! Folders of models that read images too: the text model within.
//!
//! Its keys are under `text_config`; missing ones take the class's defaults, even dimensions. Not here: what the text models
//! are (`mod.rs`).

use super::{gemma3_text, ministral3, mistral};
use crate::model::architecture::Architecture;
use crate::model::architecture::keys::{Keys, not_computed};
use serde_json::{Map, Value, json};

/// Where the text model's keys are.
const TEXT: &str = "text_config";

/// Reads a text model's keys.
type Read = fn(&Keys) -> Architecture;

/// A model that reads images too.
struct Whole {
    model_type: &'static str,
    /// What its text model may be; the first if the file does not say.
    texts: &'static [(&'static str, Read)],
    /// The text model's dimensions that a file may leave out.
    dimensions: &'static [(&'static str, usize)],
}

const GEMMA_3: Whole = Whole {
    model_type: "gemma3",
    texts: &[("gemma3_text", gemma3_text)],
    dimensions: &[
        ("vocab_size", 262_208),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_hidden_layers", 26),
        ("num_attention_heads", 8),
    ],
};

const MISTRAL_3: Whole =
    Whole { model_type: "mistral3", texts: &[("mistral", mistral), ("ministral3", ministral3)], dimensions: &[] };

/// The text part of Gemma 3.
pub(super) fn gemma3(keys: &Keys) -> Architecture {
    text_part(keys, &GEMMA_3)
}

/// The text part of Mistral 3: Mistral Small or Ministral 3.
pub(super) fn mistral3(keys: &Keys) -> Architecture {
    text_part(keys, &MISTRAL_3)
}

fn text_part(keys: &Keys, whole: &Whole) -> Architecture {
    let Some(inner) = keys.object(TEXT) else {
        if !keys.has(TEXT) {
            keys.missing(TEXT);
        }
        return nothing();
    };
    let named = inner.text("model_type").unwrap_or(whole.texts[0].0);
    let Some((_, read)) = whole.texts.iter().find(|(known, _)| *known == named) else {
        let known: Vec<&str> = whole.texts.iter().map(|(known, _)| *known).collect();
        let found = format!("{TEXT} has model_type \"{named}\"");
        keys.fault(TEXT, not_computed(&found, "this text model", &known.join(" or ")));
        return nothing();
    };
    let mut inner = inner.or(whole.dimensions.iter().map(|(key, value)| (*key, json!(value))));
    // The whole model's value counts, as in Transformers.
    if let Some(tied) = keys.flag("tie_word_embeddings") {
        inner = inner.with("tie_word_embeddings", json!(tied));
    }
    Architecture { part_of: Some(whole.model_type), ..read(&inner) }
}

/// A stand-in for a missing text model; its own faults are discarded.
fn nothing() -> Architecture {
    mistral(&Keys::default())
}

/// The config.json of the text model alone: extracted from that of a whole model, or else unchanged.
pub fn text_config(config: Map<String, Value>) -> Map<String, Value> {
    let whole = config.get("model_type").and_then(Value::as_str);
    let known = [GEMMA_3, MISTRAL_3].into_iter().find(|known| Some(known.model_type) == whole);
    let (Some(known), Some(Value::Object(inner))) = (known, config.get(TEXT)) else { return config };
    let mut text = inner.clone();
    text.entry("model_type").or_insert(json!(known.texts[0].0));
    // Keys for tokens and precision are outside `text_config`, and count.
    for (key, value) in &config {
        let of_whole =
            key.ends_with("_token_id") || ["dtype", "torch_dtype", "transformers_version"].contains(&key.as_str());
        if of_whole || key == "tie_word_embeddings" {
            text.insert(key.clone(), value.clone());
        }
    }
    text
}
