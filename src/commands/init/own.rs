//! Chooses a config's settings from the model, the data and this machine.
//!
//! Not here: looking at them (`look.rs`), and another program's settings (`translate.rs`).

use super::draft::Draft;
use super::look::{DataFacts, ModelFacts};
use crate::config::{Config, Format, TemplateKind};
use crate::error::Result;
use crate::launcher::linked::gpus_in_use;
use crate::machine;
use crate::model::architecture::Architecture;
use crate::model::lora;
use crate::plan::here;
use clap::ValueEnum;
use toml::Value;

/// Values of data.max_length to choose from.
const LENGTHS: [usize; 6] = [512, 1024, 2048, 4096, 8192, 16384];

/// Share of the pairs that may be cut.
const MAY_BE_CUT: f64 = 0.01;

/// Number of evaluations and checkpoints in a run.
const LOOKS: usize = 10;

/// Chooses the template for texts.
pub(crate) fn template(draft: &mut Draft, model: &ModelFacts, data: &[DataFacts]) -> TemplateKind {
    let transcripts = data.iter().any(|data| matches!(data.format, Some(Format::Hh | Format::RmStatic)));
    let (kind, why) = match (model.chat, transcripts) {
        (true, _) if model.tokenizer.is_none() => {
            (TemplateKind::Chat, "The model's own chat template, if it has one: take \"instruct\" for a base model.")
        }
        (true, _) => (TemplateKind::Chat, "The model's own chat template, which it was tuned with."),
        (false, true) => {
            (TemplateKind::Hh, "The model has no chat template, and the data are transcripts as in hh-rlhf.")
        }
        (false, false) => {
            (TemplateKind::Instruct, "The model has no chat template: \"Instruct: ... Output: ...\" is used instead.")
        }
    };
    let name = kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    draft.set("data.template", name, why);
    kind
}

/// Chooses data.max_length so that few pairs are cut.
pub(crate) fn max_length(draft: &mut Draft, model: &ModelFacts, lengths: &[usize]) {
    let limit = model.architecture.as_ref().map_or(usize::MAX, |architecture| architecture.max_positions);
    if let Some(chosen) = draft.get("data.max_length").and_then(Value::as_integer) {
        let chosen = usize::try_from(chosen).unwrap_or(0);
        let beyond =
            format!("More than the {limit} tokens that the model was made for: lower it, unless pairs are shorter.");
        let why = cut(lengths, chosen).into_iter().chain((chosen > limit).then_some(beyond));
        why.for_each(|why| draft.add_reason("data.max_length", why));
        return;
    }
    let longer = |length: usize| lengths.iter().filter(|found| **found > length).count();
    let few = |length: &usize| longer(*length) as f64 <= MAY_BE_CUT * lengths.len() as f64;
    let fitting: Vec<usize> = LENGTHS.into_iter().filter(|length| *length <= limit).collect();
    let chosen = fitting.iter().copied().find(few).or(fitting.last().copied()).unwrap_or(limit);
    // If the best of them still cuts many pairs, take the model's own limit, unless that is above all of them.
    let chosen = if few(&chosen) || limit > LENGTHS[LENGTHS.len() - 1] { chosen } else { limit };
    match cut(lengths, chosen) {
        Some(why) => draft.set("data.max_length", chosen as i64, why),
        None if chosen < LENGTHS[0] => {
            draft.set("data.max_length", chosen as i64, "The model was not made for longer sequences.");
        }
        None => {}
    }
}

/// "1 step", "2 steps".
fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn cut(lengths: &[usize], length: usize) -> Option<String> {
    let longest = lengths.iter().max()?;
    let longer = lengths.iter().filter(|found| **found > length).count();
    let looked = lengths.len();
    let looked = counted(looked, "pair");
    Some(match longer {
        0 => format!("None of the first {looked} is longer; the longest has {longest} tokens."),
        longer => format!("Longer ones among the first {looked}: {longer}; the longest has {longest} tokens."),
    })
}

/// Chooses the length of the run, evaluations and checkpoints, unless they are set already.
pub(crate) fn schedule(draft: &mut Draft, pairs: Option<usize>, has_dev: bool) {
    let batch = draft.get("train.pairs_per_step").and_then(Value::as_integer).unwrap_or(16).max(1) as usize;
    let set = |draft: &Draft, key: &str| draft.get(key).and_then(Value::as_integer).map(|value| value.max(0) as usize);
    let epochs = set(draft, "train.epochs").unwrap_or(1);
    if draft.get("train.steps").is_none() && draft.get("train.epochs").is_none() {
        let why = match pairs {
            Some(pairs) => format!(
                "One pass over {}, {batch} per step: {}. More passes soon overfit a reward model.",
                counted(pairs, "pair"),
                counted(pairs.div_ceil(batch), "step")
            ),
            None => "One pass over the pairs. More passes soon overfit a reward model.".to_owned(),
        };
        draft.set("train.epochs", 1, why);
    }
    if !has_dev {
        draft.say(
            "There are no dev pairs, so the last checkpoint is the result. With --dev FILE the best one on those pairs is kept.",
        );
    }
    let Some(steps) = set(draft, "train.steps").or_else(|| Some(epochs * pairs?.div_ceil(batch))) else { return };
    let every = steps.div_ceil(LOOKS).max(1) as i64;
    if has_dev && draft.get("eval.every").is_none() {
        let why = match every {
            1 => "After every step: there are few.".to_owned(),
            _ => format!("About {LOOKS} times in {steps} steps."),
        };
        draft.set("eval.every", every, why);
    }
    if draft.get("checkpoint.every").is_none() {
        let why = match has_dev {
            true => "With every evaluation, so that the best one on the dev pairs is kept.",
            false => "An interruption loses no more steps than this.",
        };
        draft.set("checkpoint.every", every, why);
    }
}

/// Notes what "auto" means on this machine, unless the precision is set.
pub(crate) fn precision(draft: &mut Draft) {
    if draft.get("model.dtype").is_none() {
        let here = match gpus_in_use().is_some() || machine::processor_has_bf16() {
            true => "bf16, in which this machine computes",
            false => "f32, as this processor does not compute in bf16",
        };
        draft.say(format!("model.dtype stays \"auto\": here {here}."));
    }
}

/// Chooses the objective: both losses, unless this model allows only the reward loss.
pub(crate) fn objective(draft: &mut Draft, model: &ModelFacts) {
    if !model.language_model_head {
        let why = "The reward loss alone: the model has no language-model head for a policy loss.";
        draft.set("loss.objective", "reward", why);
    }
}

/// Sets the adapter's settings if the model's folder is an adapter.
pub(crate) fn adapter(draft: &mut Draft, model: &ModelFacts) {
    let Some((adapter, targets)) = &model.adapter else { return };
    for key in ["lora.rank", "lora.alpha", "lora.targets", "lora.use_rslora"] {
        if let Some(value) = draft.get(key) {
            draft.leave(format!("{key} = {value}: model.path is an adapter, which has its own"));
        }
    }
    let why = "From the adapter in model.path, whose training continues.";
    draft.set("lora.rank", adapter.r as i64, why);
    draft.set("lora.alpha", adapter.lora_alpha, why);
    draft.set("lora.targets", targets.clone(), why);
    draft.set("lora.use_rslora", adapter.use_rslora, why);
}

/// Fits the training into this machine's memory: all weights if that fits, else with activation checkpointing, else adapters,
/// unless the method comes from another program (`translated`).
///
/// # Errors
/// A draft that is not a valid config.
pub(crate) fn memory(
    draft: &mut Draft,
    model: &ModelFacts,
    translated: bool,
    config: impl Fn(&Draft) -> Result<Config>,
) -> Result<()> {
    let Some(architecture) = &model.architecture else { return Ok(()) };
    let cards = gpus_in_use();
    let room = |draft: &Draft| here::on_first_device(&config(draft)?, architecture, 1, cards.as_deref());
    // Without a known amount of memory there is nothing to compare.
    let Some(whole) = room(draft)? else { return Ok(()) };
    if whole.needed <= whole.usable {
        draft.say(format!("Memory: {}.", whole.described()));
        return Ok(());
    }
    let lacks = format!("Without it {}, which is too little", whole.described());
    if draft.get("train.activation_checkpointing").is_none() {
        draft.set(
            "train.activation_checkpointing",
            true,
            format!("{lacks}: blocks are computed again in the backward pass."),
        );
        if let Some(lean) = room(draft)?.filter(|lean| lean.needed <= lean.usable) {
            draft.add_reason("train.activation_checkpointing", format!("With it {}.", lean.described()));
            return Ok(());
        }
    }
    if !translated && draft.get("lora.targets").is_none() && architecture.part_of.is_none() {
        low_rank(draft, architecture, &lacks);
        if let Some(lean) = room(draft)?.filter(|lean| lean.needed <= lean.usable) {
            draft.add_reason("lora.targets", format!("With adapters {}.", lean.described()));
            return Ok(());
        }
    }
    let why = "This does not fit the machine at hand: haf-dist plan shows what would, on which GPUs.";
    draft.say(why);
    Ok(())
}

fn low_rank(draft: &mut Draft, architecture: &Architecture, lacks: &str) {
    let why =
        format!("{lacks}, and recomputation alone does not help enough: adapters are trained in place of all weights.");
    draft.set("lora.targets", lora::all_targets(architecture), why);
    draft.set("lora.rank", 16, "Enough for one task.");
    draft.set("lora.alpha", 32.0, "Twice the rank, as is usual.");
    if draft.get("train.learning_rate").is_none() {
        draft.set("train.learning_rate", 1e-4, "Adapters need about ten times the rate of whole models.");
    }
}
