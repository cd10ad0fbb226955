//! Quantized weights are recognized by their config or their tensors, and refused: their numbers are codes, not values.
//!
//! Not here: dequantizing them, which the library that made them does.

use crate::error::{Error, Result};
use crate::safetensors_io::Mapped;
use serde_json::Value;
use std::path::Path;

/// Kinds of numbers that are plain values, by their names in the container.
const PLAIN: [&str; 4] = ["F32", "F16", "BF16", "F64"];

/// Last parts of the names of tensors that only quantized weights have, and which libraries write them.
const MARKS: [(&str, &str); 14] = [
    ("qweight", "GPTQ or AWQ"),
    ("qzeros", "GPTQ or AWQ"),
    ("g_idx", "GPTQ"),
    ("scales", "GPTQ or AWQ"),
    ("SCB", "bitsandbytes, int8"),
    ("weight_format", "bitsandbytes, int8"),
    ("absmax", "bitsandbytes, 4 bits"),
    ("quant_map", "bitsandbytes, 4 bits"),
    ("weight_scale", "FP8 or compressed-tensors"),
    ("weight_scale_inv", "FP8"),
    ("input_scale", "FP8 or compressed-tensors"),
    ("weight_packed", "compressed-tensors"),
    ("weight_shape", "compressed-tensors"),
    ("weight_zero_point", "compressed-tensors"),
];

/// Keys of config.json that say that weights are quantized.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// Refuses a folder whose `config` or tensors say that its weights are quantized. `is_weight` says of a tensor's name in the
/// file whether the model computes with it.
///
/// # Errors
/// [`Error::input`] that names these signs.
pub(crate) fn refuse(folder: &Path, config: &Value, files: &[Mapped], is_weight: impl Fn(&str) -> bool) -> Result<()> {
    let mut signs = Vec::new();
    for key in KEYS {
        let value = config.get(key).filter(|value| !value.is_null());
        signs.extend(value.map(|value| match value.get("quant_method").and_then(Value::as_str) {
            Some(method) => format!("config.json has {key} with quant_method \"{method}\""),
            None => format!("config.json has {key}"),
        }));
    }
    let (mut marked, mut coded) = (None, None);
    for file in files {
        for name in file.names() {
            let last = name.rsplit('.').next().unwrap_or_default();
            let kind = file.kind_name(&name)?;
            if coded.is_none() && !PLAIN.contains(&kind.as_str()) && is_weight(&name) {
                coded = Some(format!("{name} is {kind}"));
            }
            if let Some((_, library)) = MARKS.iter().find(|(mark, _)| *mark == last).filter(|_| marked.is_none()) {
                marked = Some(format!("there is {name} ({library})"));
            }
        }
    }
    signs.extend(marked.into_iter().chain(coded));
    if signs.is_empty() {
        return Ok(());
    }
    Err(Error::input(format!("{}: its weights are quantized: {}", folder.display(), signs.join("; "))).hint(
        "use the model that it was made from; or load it in Transformers, and save model.dequantize(), without \
         quantization_config; plain f32, f16 or bf16 weights are read",
    ))
}
