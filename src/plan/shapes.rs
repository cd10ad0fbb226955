//! The shapes of common models, so that a plan for them needs no files.
//!
//! Figures are those of each model's config.json as its authors published it. Not here: families (`model/architecture/`).

use crate::error::{Error, Result};
use crate::model::architecture::Architecture;
use serde_json::json;

/// One model.
struct Shape {
    name: &'static str,
    model_type: &'static str,
    width: usize,
    inner: usize,
    blocks: usize,
    heads: usize,
    key_heads: usize,
    head: usize,
    vocabulary: usize,
    tied: bool,
    positions: usize,
}

const fn shape(
    name: &'static str,
    model_type: &'static str,
    [width, inner, blocks]: [usize; 3],
    [heads, key_heads, head]: [usize; 3],
    vocabulary: usize,
    tied: bool,
    positions: usize,
) -> Shape {
    Shape { name, model_type, width, inner, blocks, heads, key_heads, head, vocabulary, tied, positions }
}

const SHAPES: [Shape; 16] = [
    shape("smollm2-135m", "llama", [576, 1536, 30], [9, 3, 64], 49_152, true, 8192),
    shape("llama-3.2-1b", "llama", [2048, 8192, 16], [32, 8, 64], 128_256, true, 131_072),
    shape("llama-3.2-3b", "llama", [3072, 8192, 28], [24, 8, 128], 128_256, true, 131_072),
    shape("llama-3.1-8b", "llama", [4096, 14_336, 32], [32, 8, 128], 128_256, false, 131_072),
    shape("llama-3.1-70b", "llama", [8192, 28_672, 80], [64, 8, 128], 128_256, false, 131_072),
    shape("mistral-7b", "mistral", [4096, 14_336, 32], [32, 8, 128], 32_768, false, 32_768),
    shape("qwen2.5-0.5b", "qwen2", [896, 4864, 24], [14, 2, 64], 151_936, true, 32_768),
    shape("qwen2.5-1.5b", "qwen2", [1536, 8960, 28], [12, 2, 128], 151_936, true, 32_768),
    shape("qwen2.5-7b", "qwen2", [3584, 18_944, 28], [28, 4, 128], 152_064, false, 32_768),
    shape("qwen3-0.6b", "qwen3", [1024, 3072, 28], [16, 8, 128], 151_936, true, 40_960),
    shape("qwen3-1.7b", "qwen3", [2048, 6144, 28], [16, 8, 128], 151_936, true, 40_960),
    shape("qwen3-4b", "qwen3", [2560, 9728, 36], [32, 8, 128], 151_936, true, 40_960),
    shape("qwen3-8b", "qwen3", [4096, 12_288, 36], [32, 8, 128], 151_936, false, 40_960),
    shape("qwen3-14b", "qwen3", [5120, 17_408, 40], [40, 8, 128], 151_936, false, 40_960),
    shape("gemma-2-2b", "gemma2", [2304, 9216, 26], [8, 4, 256], 256_000, true, 8192),
    shape("gemma-2-9b", "gemma2", [3584, 14_336, 42], [16, 8, 256], 256_000, true, 8192),
];

/// The architecture with that name, or with the first name that ends in it: `llama-3.1-8b`, `8b`.
///
/// # Errors
/// An unknown name; the hint lists the known ones.
pub fn architecture(name: &str) -> Result<Architecture> {
    let end = format!("-{}", name.to_lowercase());
    let found = SHAPES.iter().find(|shape| shape.name == &end[1..]);
    let found = found.or_else(|| SHAPES.iter().find(|shape| shape.name.ends_with(&end)));
    let shape = found.ok_or_else(|| {
        let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        Error::input(format!("--shape {name}: not known"))
            .hint(format!("known: {}; for others --model FOLDER or hf://owner/name", names.join(", ")))
    })?;
    Architecture::parse(&shape.config())
}

impl Shape {
    fn config(&self) -> String {
        let activation = if self.model_type == "gemma2" { "gelu_pytorch_tanh" } else { "silu" };
        json!({
            "model_type": self.model_type,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.positions,
            "hidden_act": activation,
            "hidden_activation": activation,
            "rms_norm_eps": 1e-5,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::Part;

    fn parameters(name: &str) -> usize {
        let architecture = architecture(name).unwrap();
        let parts = Part::all(&architecture).into_iter().filter(|part| *part != Part::RewardHead);
        let declared: Vec<_> = parts.flat_map(|part| part.parameters(&architecture)).collect();
        declared.iter().map(|one| one.shape.iter().product::<i64>() as usize).sum()
    }

    /// Promise: a shape has as many parameters as the model published under its name.
    #[test]
    fn shapes_count_as_the_models_do() {
        // Counted by Transformers from the published config.json.
        let counts = [
            ("smollm2-135m", 134_515_008),
            ("llama-3.2-1b", 1_235_814_400),
            ("8b", 8_030_261_248),
            ("llama-3.1-70b", 70_553_706_496),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-8b", 8_190_735_360),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-2-9b", 9_241_705_984),
        ];
        for (name, count) in counts {
            assert_eq!(parameters(name), count, "{name}");
        }
        for shape in &SHAPES {
            assert_eq!(architecture(shape.name).unwrap().blocks.len(), shape.blocks);
        }
    }

    #[test]
    fn an_unknown_shape_is_told_which_are_known() {
        assert!(architecture("9000b").unwrap_err().hint.unwrap().contains("llama-3.1-8b"));
    }
}
