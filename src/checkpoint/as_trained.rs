//! `haf_dist.json` in a model's folder: how the run tokenized its texts, so that the model alone, without `trainer/`, scores
//! as in the run; and the values fitted on the dev pairs.
//!
//! Not here: the run's whole configuration (`trainer/config.toml`).

use super::{CONFIG, Fitted, Rendering, read_json, to_json, write_text};
use crate::config::{Config, Dtype, RewardAt, TemplateKind, Truncation};
use crate::data::tokenize::Rules;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Its name, in a model's folder.
pub(crate) const AS_TRAINED: &str = "haf_dist.json";

/// The largest: with 8 digits for each dev prompt, it has room for 8 million of them.
const MOST_BYTES: u64 = 64 << 20;

/// The settings to score a folder's model with, unless the command line sets others; the keys are those of the config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsTrained {
    /// `data.template`
    pub(crate) template: TemplateKind,
    /// `data.max_length`, in tokens.
    pub(crate) max_length: usize,
    /// `data.max_prompt_length`, in tokens.
    pub(crate) max_prompt_length: usize,
    /// `data.truncation`
    pub(crate) truncation: Truncation,
    /// `data.reward_at`; files of versions that read the reward only at the EOS do not have it.
    #[serde(default)]
    pub(crate) reward_at: RewardAt,
    /// `model.dtype`
    pub(crate) dtype: Dtype,
    /// How the folder's chat template relates to the training; files of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chat_template: Option<Rendering>,
    /// Fitted on the run's dev pairs at this checkpoint; runs without dev pairs do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fitted: Option<Fitted>,
}

impl AsTrained {
    /// The settings of a run with this config, without `chat_template` and `fitted`, which it does not say.
    pub fn of(config: &Config) -> Self {
        let data = &config.data;
        Self {
            template: data.template,
            max_length: data.max_length,
            max_prompt_length: data.max_prompt_length,
            truncation: data.truncation,
            reward_at: data.reward_at,
            dtype: config.model.dtype,
            chat_template: None,
            fitted: None,
        }
    }

    /// The settings in a model's folder; `None` if it has no such file.
    ///
    /// # Errors
    /// [`Error::input`] for a file with other keys, other types or values out of their range; it names the file.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(AS_TRAINED);
        if !path.is_file() {
            return Ok(None);
        }
        let hint = "haf-dist writes it with the model: restore it, or remove it and say how the model was \
                    trained with --template, --max-length and --max-prompt-length";
        let read: Self = read_json(&path, MOST_BYTES).map_err(|error| error.hint(hint))?;
        let wrong = |error: Error| Error::input(format!("{}: {}", path.display(), error.message)).hint(hint);
        Config::check_lengths([("max_length", read.max_length), ("max_prompt_length", read.max_prompt_length)])
            .map_err(wrong)?;
        Ok(Some(read))
    }

    /// [`read`](Self::read) for a checkpoint. An earlier version may have written it without the file; then the settings come
    /// from the run's config.
    ///
    /// # Errors
    /// As [`read`](Self::read), or a config that cannot be read.
    pub fn of_checkpoint(folder: &Path) -> Result<Option<Self>> {
        let config = folder.join(CONFIG);
        match Self::read(folder)? {
            None if config.is_file() => Config::load(&config, &[]).map(|config| Some(Self::of(&config))),
            read => Ok(read),
        }
    }

    /// The rules by which texts become sequences.
    pub fn rules(&self) -> Rules {
        let rules = Rules::new(self.template, self.max_length, self.max_prompt_length, self.truncation);
        Rules { reward_at: self.reward_at, ..rules }
    }

    /// Writes it into the folder of a model.
    ///
    /// # Errors
    /// A failed write.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        write_text(&folder.join(AS_TRAINED), &to_json(self)?)
    }

    /// Overrides the settings of a config.
    pub(crate) fn apply(self, config: &mut Config) {
        let Self { template, max_length, max_prompt_length, truncation, reward_at, dtype, chat_template: _, fitted: _ } =
            self;
        let data = &mut config.data;
        (data.template, data.truncation, data.reward_at) = (template, truncation, reward_at);
        (data.max_length, data.max_prompt_length) = (max_length, max_prompt_length);
        config.model.dtype = dtype;
    }
}
