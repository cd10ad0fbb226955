//! The exported part of a checkpoint with adapters: a folder as PEFT writes it, without the base model.
//!
//! Not here: reading one (`model/adapter.rs`).

use super::{Snapshot, export, to_json, write_text};
use crate::error::Result;
use crate::model::adapter::WEIGHTS;
use crate::model::architecture::Architecture;
use crate::model::lora::Lora;
use crate::model::peft::{CONFIG, PREFIX, Written};
use crate::safetensors_io::{self, Entry};
use std::path::Path;

/// The adapters of a checkpoint.
pub struct AdapterOf<'a> {
    /// Their rank, and the projections they are on.
    pub(crate) lora: &'a Lora,
    /// The model that they adapt.
    pub(crate) architecture: &'a Architecture,
    /// The base's folder, or its name and commit on the hub.
    pub(crate) base: (&'a str, Option<&'a str>),
}

/// Writes adapter_config.json, the adapters' weights with the head, and the tokenizer's files into `folder`.
pub(crate) fn write(folder: &Path, snapshot: &Snapshot, of: &AdapterOf) -> Result<()> {
    let Lora { rank, alpha, use_rslora, .. } = *of.lora;
    let targets = of.lora.targets(of.architecture);
    let written = Written { base: of.base, rank, alpha, use_rslora, targets: &targets };
    write_text(&folder.join(CONFIG), &to_json(&written.to_json())?)?;
    let named = snapshot.weights.iter().map(|weight| Entry {
        name: format!("{PREFIX}{}", weight.name),
        kind: weight.kind,
        shape: weight.shape.clone(),
        values: Box::new(|| (weight.values)()),
    });
    safetensors_io::write_model_entries(&folder.join(WEIGHTS), &named.collect::<Vec<_>>())?;
    export::write_companions(folder, snapshot.model_dir, snapshot.pad_token_id)
}
