//! A Hugging Face folder's weights -> a [`Model`], strictly checked.
//!
//! Every tensor that the architecture needs must be there in its exact shape. The reward head may be missing: it starts
//! at zero (HaF-RM's choice, so that both losses start at ln 2). Not here: the files (`weight_files.rs`), their names
//! (`names.rs`).

use super::architecture::Architecture;
use super::layout::{Part, without_head};
use super::lora::Lora;
use super::segment::{Parameter, Segment, Use};
use super::weight_files::WeightFiles;
use crate::error::Result;
use crate::ops::{self, Ops};
use crate::tensor;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

/// A model in memory: its description and its segments, in the order of the forward pass.
pub struct Model {
    /// Its description.
    pub architecture: Architecture,
    /// The part that each segment holds.
    pub parts: Vec<Part>,
    /// The parameters, a segment for each part.
    pub segments: Vec<Segment>,
    /// Kind of the computation.
    pub kind: Kind,
    /// Where it lives.
    pub device: Device,
    /// Whether the folder has a reward head; if not, it is zero.
    pub had_reward_head: bool,
    /// The bias of the folder's reward head: added to every reward of an evaluation, not trained and not exported. It changes
    /// no comparison of two answers.
    pub reward_bias: f64,
    /// The adapters that it has: their weights are the last segments, one a block.
    pub lora: Option<Lora>,
    /// Hash of everything read for segments of which this rank holds a share of the masters in memory of their own: no rank
    /// has all of them to send, so ranks compare the hash. None if there are no such segments.
    pub shares_read: Option<u128>,
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Kind of the computation; the reward head is always f32.
    pub kind: Kind,
    /// Where the model goes.
    pub device: Device,
    /// Trained or only evaluated.
    pub purpose: Use,
    /// Whether log-probs are wanted: then an untied language-model head must be there, and is trained with the rest.
    pub log_probs: bool,
}

impl Model {
    /// Loads config.json and the safetensors of `folder`.
    ///
    /// # Errors
    /// A missing, cut or damaged file, missing tensors, or one of another shape; each names the file and the tensor.
    pub fn load(folder: &Path, options: LoadOptions) -> Result<Self> {
        let mut architecture = Architecture::open(folder)?;
        let files = WeightFiles::of_model(folder, &architecture)?;
        if architecture.tied && has_other_head(&architecture, &files)? {
            tracing::warn!(
                "{}: config.json ties the language-model head to the embedding, but {}.weight holds other values: it is read \
                 and trained as a head of its own, as in Transformers 5; tie_word_embeddings = false says so",
                folder.display(),
                architecture.names.head[0]
            );
            architecture.tied = false;
        }
        let mut parts = Part::all(&architecture);
        if !options.log_probs && !files.has_language_model_head(&architecture) {
            (architecture, parts) = without_head(&architecture);
        }
        files.check(folder, &architecture, &parts)?;
        let mut hash = Xxh3::new();
        let load = |&part| load_segment(&architecture, part, &files, options, &mut hash);
        let segments = parts.iter().map(load).collect::<Result<Vec<_>>>()?;
        let shares_read = segments.iter().any(Segment::holds_share_of_masters).then(|| hash.digest128());
        let LoadOptions { kind, device, purpose, .. } = options;
        let (had_reward_head, reward_bias, lora) = (false, 0.0, None);
        let mut model =
            Self { architecture, parts, segments, kind, device, had_reward_head, reward_bias, lora, shares_read };
        model.bring_head(files.reward_head()?, purpose);
        Ok(model)
    }

    /// Takes over the reward head [1, D] of a folder and its bias, if there is one.
    pub(crate) fn bring_head(&mut self, head: Option<(Tensor, f64)>, purpose: Use) {
        let (Some((index, _)), Some((weight, bias))) = (self.segment(Part::RewardHead), head) else { return };
        self.segments[index].set(0, &weight);
        (self.had_reward_head, self.reward_bias) = (true, bias);
        if bias != 0.0 && purpose.trains() {
            tracing::warn!(
                "the reward head has a bias, {bias}, which is left out: it changes no comparison, and servers do not read \
                 it; rewards of the trained model are lower by it"
            );
            self.reward_bias = 0.0;
        }
    }

    /// The operations of the device that it is on: chosen once, when its segments are made.
    pub(crate) fn ops(&self) -> &'static dyn Ops {
        self.segments.first().map_or_else(|| ops::of(self.device), |first| first.weights.ops)
    }

    /// The segment of a part and its number, if the model has the part.
    pub fn segment(&self, part: Part) -> Option<(usize, &Segment)> {
        let index = self.parts.iter().position(|other| *other == part)?;
        Some((index, &self.segments[index]))
    }

    /// Number of parameters, heads included.
    pub fn parameter_count(&self) -> usize {
        self.segments.iter().map(Segment::length).sum()
    }

    /// Every parameter by its checkpoint name, in f32 if there is a master.
    pub fn named_values(&self) -> Vec<(String, Tensor)> {
        let named = |segment: &Segment| -> Vec<(String, Tensor)> {
            let parameters = segment.parameters().iter().enumerate();
            parameters.map(|(index, parameter)| (parameter.name.clone(), segment.value(index))).collect()
        };
        self.segments.iter().flat_map(named).collect()
    }
}

/// Whether the files hold a language-model head that is not the embedding.
fn has_other_head(architecture: &Architecture, files: &WeightFiles) -> Result<bool> {
    let [head, embedding] =
        [architecture.names.head[0], architecture.names.embedding].map(|name| format!("{name}.weight"));
    if !files.has(&head) || !files.has(&embedding) {
        return Ok(false);
    }
    let (head, embedding) = (files.read(&head)?, files.read(&embedding)?);
    Ok(head.size() != embedding.size() || !head.to_kind(embedding.kind()).equal(&embedding))
}

/// Reads the tensors of a segment one after the other: each is rounded to the compute kind, and if masters are sharded this
/// rank keeps only its own share of the f32 values. Those of which it does are hashed.
fn load_segment(
    architecture: &Architecture,
    part: Part,
    files: &WeightFiles,
    options: LoadOptions,
    hash: &mut Xxh3,
) -> Result<Segment> {
    let kind = if part == Part::RewardHead { Kind::Float } else { options.kind };
    let frozen = part == Part::LanguageModelHead && !options.log_probs;
    let purpose = if frozen { Use::Evaluate } else { options.purpose };
    let mut segment = Segment::new(part.parameters(architecture), kind, options.device, purpose);
    for index in 0..segment.parameters().len() {
        let Parameter { name, rows, .. } = &segment.parameters()[index];
        if files.has(name) {
            let value = files.read(name)?;
            if segment.holds_share_of_masters() {
                hash.update(format!("{name} {value:?}").as_bytes());
                hash.update(&tensor::bytes(&value)?);
            }
            let value = rows.to_memory(&value);
            segment.set(index, &value);
        }
    }
    Ok(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The message of a load that fails; it must have a hint.
    fn refusal(folder: &Path) -> String {
        let purpose = Use::Evaluate;
        let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose, log_probs: false };
        let error = Model::load(folder, options).err().unwrap();
        assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        error.message
    }

    #[test]
    fn weights_that_do_not_fit_are_named_with_a_hint() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-tied");
        let config = fs::read_to_string(golden.join("config.json")).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        assert!(refusal(folder).contains("config.json"));
        fs::write(folder.join("config.json"), config.replace("\"vocab_size\": ", "\"vocab_size\": 1")).unwrap();
        assert!(refusal(folder).contains("holds no weights"));

        let index = folder.join("model.safetensors.index.json");
        for (text, message) in [("[]", "not a safetensors index"), ("{\"weight_map\": {}}", "weight_map is empty")] {
            fs::write(&index, text).unwrap();
            assert!(refusal(folder).contains(message));
        }
        fs::write(&index, r#"{"weight_map": {"model.norm.weight": "gone.safetensors"}}"#).unwrap();
        assert!(refusal(folder).contains("gone.safetensors"));

        fs::copy(golden.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
        assert!(refusal(folder).contains("model.embed_tokens.weight has shape"));
        fs::write(folder.join("config.json"), config.replace("\"num_hidden_layers\": ", "\"num_hidden_layers\": 1"))
            .unwrap();
        assert!(refusal(folder).contains("tensors are missing"));
    }
}
