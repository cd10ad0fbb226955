//! Names of tensors in the files of other programs -> the names that the architecture has for them.
//!
//! Wrappers add to names (DDP, torch.compile, FSDP, PEFT, TRL's value-head class), a backbone saved alone lacks its own
//! prefix, and trainers have different names for the reward head. Not here: reading the tensors (`weight_files.rs`).

use super::architecture::{Architecture, Names};
use super::layout::REWARD_HEAD;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Prefixes that wrappers add to every name, and models that read images too to those of their text part.
const PREFIXES: [&str; 5] = ["module.", "base_model.model.", "pretrained_model.", "language_model.", "model."];

/// What wrappers of single modules insert into names.
const INFIXES: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];

/// Names of reward heads: of Transformers (and this program), OpenRLHF, TRL and LLaMA-Factory, and others.
pub(crate) const HEADS: [&str; 5] = ["score", "value_head", "v_head", "reward_head", "classifier"];

/// TRL's and LLaMA-Factory's head is a module with a dropout before its one linear map.
const INNER: &str = "summary.";

/// The architecture's name for a tensor, or the tensor's own name if it is not the model's.
pub(crate) fn usual(architecture: &Architecture, name: &str) -> String {
    let mut name = name.to_string();
    for infix in INFIXES {
        name = name.replace(infix, "");
    }
    let mut rest = name.as_str();
    loop {
        if is_known(architecture, rest) {
            return with_usual_module(architecture, with_usual_head(architecture, rest));
        }
        // A backbone saved alone.
        let whole = format!("{}{rest}", backbone(architecture));
        if is_known(architecture, &whole) {
            return with_usual_module(architecture, whole);
        }
        match PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
            Some(shorter) => rest = shorter,
            None => return name,
        }
    }
}

/// The prefix of all names except those of heads: `model.`, `gpt_neox.`.
fn backbone(architecture: &Architecture) -> &'static str {
    let embedding = architecture.names.embedding;
    embedding.find('.').map_or("", |dot| &embedding[..=dot])
}

/// Whether a name is that of a part of the model, or of a reward head.
fn is_known(architecture: &Architecture, name: &str) -> bool {
    let names = &architecture.names;
    let is_of = |module: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
    name.starts_with(names.block)
        || [names.embedding, names.norm].into_iter().any(is_of)
        || names.head.iter().copied().any(is_of)
        || HEADS.into_iter().any(is_of)
}

/// Some files have another name for the language-model head.
fn with_usual_head(architecture: &Architecture, name: &str) -> String {
    let [usual, others @ ..] = architecture.names.head else { return name.into() };
    let rest = others.iter().find_map(|other| name.strip_prefix(other)?.strip_prefix('.'));
    rest.map_or_else(|| name.into(), |rest| format!("{usual}.{rest}"))
}

/// Transformers 5 calls the module of all experts `mlp`, even in families whose files had another name.
fn with_usual_module(architecture: &Architecture, name: String) -> String {
    let Names { block, router, .. } = architecture.names;
    let usual = router.split('.').next().unwrap_or(router);
    let within = name.strip_prefix(block).and_then(|rest| rest.split_once(".mlp."));
    within.filter(|_| usual != "mlp").map(|(number, rest)| format!("{block}{number}.{usual}.{rest}")).unwrap_or(name)
}

/// The reward head's module that a tensor belongs to, if it belongs to one; `named` is the module that config.json names
/// (OpenRLHF's `value_head_prefix`).
fn head_of<'n>(name: &'n str, named: Option<&'n str>) -> Option<&'n str> {
    named.into_iter().chain(HEADS).find(|head| name.strip_prefix(head).is_some_and(|rest| rest.starts_with('.')))
}

/// Whether a tensor, by its usual name, belongs to a reward head.
pub(crate) fn is_of_a_head(name: &str, named: Option<&str>) -> bool {
    head_of(name, named).is_some()
}

/// Where a reward head is: the usual names of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeadNames {
    /// [1, D]
    pub(crate) weight: String,
    /// `[1]`, or a single number.
    pub(crate) bias: Option<String>,
}

impl HeadNames {
    /// Finds the reward head among tensors: their usual names and shapes. `named` is the module that config.json names.
    ///
    /// # Errors
    /// Several heads, one that is no single linear map, or one with a shape other than [1, D]; with the tensors found.
    pub(crate) fn find(tensors: &BTreeMap<String, Vec<i64>>, named: Option<&str>, width: i64) -> Result<Option<Self>> {
        let mut heads: BTreeMap<&str, Vec<(&String, &Vec<i64>)>> = BTreeMap::new();
        for (name, shape) in tensors {
            if let Some(head) = head_of(name, named) {
                heads.entry(head).or_default().push((name, shape));
            }
        }
        let chosen = named.filter(|named| heads.contains_key(named)).or_else(|| heads.keys().next().copied());
        let Some(head) = chosen else { return Ok(None) };
        if heads.len() > 1 && Some(head) != named {
            let all: Vec<&str> = heads.keys().copied().collect();
            return Err(Error::input(format!("there are several reward heads: {}", all.join(", ")))
                .hint("say which: \"value_head_prefix\": \"NAME\" in config.json; or remove the others"));
        }
        let parts = &heads[head];
        let shown = || parts.iter().map(|(name, shape)| format!("{name} {shape:?}")).collect::<Vec<_>>().join(", ");
        let part = |last: &str| {
            let plain = [format!("{head}.{last}"), format!("{head}.{INNER}{last}")];
            parts.iter().find(|(name, _)| plain.contains(name))
        };
        let (weight, bias) = (part("weight"), part("bias"));
        let Some((weight, shape)) = weight.filter(|_| parts.len() == 1 + usize::from(bias.is_some())) else {
            return Err(Error::input(format!("the reward head is no single linear map: {}", shown())).hint(
                "a reward model has one output of one matrix [1, D]; to train a new head, remove these tensors",
            ));
        };
        if **shape != [1, width] {
            return Err(Error::input(format!(
                "{weight} has shape {shape:?}, but by config.json it must be {:?}",
                [1, width]
            ))
            .hint("a reward model has one output: num_labels = 1"));
        }
        match bias {
            Some((name, shape)) if shape.iter().product::<i64>() != 1 => {
                Err(Error::input(format!("{name} has shape {shape:?}, but the head has one output"))
                    .hint("a reward model has one output: num_labels = 1"))
            }
            _ => Ok(Some(Self { weight: (*weight).clone(), bias: bias.map(|(name, _)| (*name).clone()) })),
        }
    }

    /// Whether it has the name that this program and Transformers use.
    pub(crate) fn is_usual(&self) -> bool {
        self.weight == REWARD_HEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn architecture(case: &str) -> Architecture {
        Architecture::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)).unwrap()
    }

    #[test]
    fn names_of_wrappers_and_of_bare_backbones_become_the_architectures() {
        for (case, raw, name) in [
            ("llama-tied", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("llama-tied", "module.model.norm.weight", "model.norm.weight"),
            ("llama-tied", "_orig_mod.module.model.norm.weight", "model.norm.weight"),
            ("llama-tied", "model.layers.1._orig_mod.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
            ("llama-tied", "base_model.model.model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("llama-tied", "base_model.model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"),
            ("llama-tied", "pretrained_model.lm_head.weight", "lm_head.weight"),
            ("llama-tied", "model.model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
            ("llama-tied", "layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
            ("llama-tied", "embed_tokens.weight", "model.embed_tokens.weight"),
            ("llama-tied", "norm.weight", "model.norm.weight"),
            ("gemma3", "language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("gemma3", "model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("gemma3", "model.language_model.norm.weight", "model.norm.weight"),
            ("gemma3", "language_model.lm_head.weight", "lm_head.weight"),
            ("gemma3", "model.vision_tower.layers.0.norm.weight", "model.vision_tower.layers.0.norm.weight"),
            ("llama-tied", "module.score.weight", "score.weight"),
            ("llama-tied", "v_head.summary.bias", "v_head.summary.bias"),
            ("gpt-neox-parallel", "layers.0.attention.dense.bias", "gpt_neox.layers.0.attention.dense.bias"),
            ("gpt-neox-parallel", "embed_in.weight", "gpt_neox.embed_in.weight"),
            ("gpt-neox-parallel", "module.lm_head.weight", "embed_out.weight"),
            // Not the model's: unchanged.
            ("llama-tied", "module.gating.weight", "module.gating.weight"),
            ("llama-tied", "transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.weight"),
            ("llama-tied", "model.", "model."),
        ] {
            assert_eq!(usual(&architecture(case), raw), name, "{case}: {raw}");
        }
    }

    #[test]
    fn a_head_is_one_linear_map_to_one_number_under_one_name() {
        let find = |tensors: &[(&str, &[i64])], named: Option<&str>| {
            let tensors = tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
            HeadNames::find(&tensors, named, 8)
        };
        let weight = |found: Result<Option<HeadNames>>| found.unwrap().map(|head| (head.weight, head.bias.is_some()));
        assert_eq!(weight(find(&[("model.norm.weight", &[8])], None)), None);
        for (name, bias) in [
            ("score.weight", "score.bias"),
            ("value_head.weight", "value_head.bias"),
            ("v_head.summary.weight", "v_head.summary.bias"),
            ("reward_head.weight", "reward_head.bias"),
            ("classifier.weight", "classifier.bias"),
        ] {
            assert_eq!(weight(find(&[(name, &[1, 8])], None)), Some((name.into(), false)));
            for shape in [&[1][..], &[]] {
                assert_eq!(weight(find(&[(name, &[1, 8]), (bias, shape)], None)), Some((name.into(), true)));
            }
            assert!(find(&[(name, &[1, 8]), (bias, &[2])], None).is_err());
            assert!(find(&[(bias, &[1])], None).is_err());
        }
        // A name of the user's, and of two heads the one that config.json names.
        let own = [("rm.weight", &[1, 8][..]), ("score.weight", &[1, 8])];
        assert_eq!(weight(find(&own[..1], None)), None);
        assert_eq!(weight(find(&own, Some("rm"))), Some(("rm.weight".into(), false)));
        assert_eq!(weight(find(&own[1..], Some("rm"))), Some(("score.weight".into(), false)));
        for (tensors, says) in [
            (&[("score.weight", &[1, 8][..]), ("v_head.summary.weight", &[1, 8])][..], "score, v_head"),
            (&[("score.weight", &[2, 8])], "score.weight has shape [2, 8]"),
            (&[("score.weight", &[1, 9])], "score.weight has shape [1, 9]"),
            (&[("score.weight", &[8])], "score.weight has shape [8]"),
            (
                &[("score.0.weight", &[8, 8]), ("score.2.weight", &[1, 8])],
                "score.0.weight [8, 8], score.2.weight [1, 8]",
            ),
            (&[("classifier.weight", &[1, 8]), ("classifier.dense.weight", &[8, 8])], "classifier.dense.weight [8, 8]"),
            (&[("score.weight", &[1, 8]), ("score.summary.weight", &[1, 8])], "no single linear map"),
        ] {
            let error = find(tensors, None).unwrap_err();
            assert!(error.message.contains(says) && error.hint.is_some(), "{error}");
        }
    }
}
