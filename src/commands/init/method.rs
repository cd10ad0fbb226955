//! Translates losses, precision and adapters from another program's config.
//!
//! Not here: keys with the same meaning in both (`words.rs`).

use super::draft::{Draft, quoted};
use super::foreign::{Program, Trains};
use super::look::ModelFacts;
use super::translate::{Given, Translation};
use crate::error::{Error, Result};
use crate::model::lora;

/// Translates all of these.
///
/// # Errors
/// A policy loss for a model without a language-model head; adapters on unknown projections.
pub(crate) fn translate(from: &mut Translation, draft: &mut Draft, model: &ModelFacts) -> Result<()> {
    if from.trains == Trains::Policy && !model.language_model_head {
        return Err(Error::input(format!("{} trains a policy, but the model has no language-model head", from.file))
            .hint("name a causal language model with --model"));
    }
    losses(from, draft);
    precision(from, draft);
    template(from);
    adapters(from, draft, model)
}

fn losses(from: &mut Translation, draft: &mut Draft) {
    match from.trains {
        Trains::Reward => {
            let why = format!(
                "{} trains a reward model with the Bradley-Terry loss alone. \"hybrid\", the default, adds the policy loss of \
                 the HaF-RM paper.",
                from.name()
            );
            draft.set("loss.objective", "reward", why);
            if let Some(given) = from.number("center_rewards_coefficient") {
                draft.set("loss.centering", given.value, given.place);
            }
        }
        Trains::Policy => {
            let why =
                "As there, no reward head is trained. \"hybrid\", the default, trains one along with the policy loss.";
            draft.set("loss.objective", "policy", why);
            draft.set(
                "loss.alpha",
                1.0,
                "The policy loss has weight 1, as there. The default, 0.2, is its weight in the hybrid loss.",
            );
            policy(from, draft);
        }
    }
}

/// The policy loss and its settings.
fn policy(from: &mut Translation, draft: &mut Draft) {
    let kind = from.texts("loss_type").or_else(|| from.texts("pref_loss"));
    let mut dpo = true;
    if let Some(kind) = kind {
        let ours = match kind.value.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["sigmoid"] => Some("dpo"),
            ["hinge"] => Some("hinge"),
            ["ipo"] => Some("ipo"),
            ["simpo"] => Some("simpo"),
            ["sft"] => Some("sft"),
            _ => None,
        };
        dpo = ours.is_none_or(|ours| ours == "dpo");
        match ours {
            Some(ours) => draft.set("loss.policy", ours, kind.place),
            None => {
                from.leave_given(&kind, "loss.policy is dpo, hinge, ipo, simpo or sft: it stays at dpo, the default")
            }
        }
        if let Some(ours @ ("ipo" | "sft")) = ours {
            from.leave_note(format!(
                "loss.policy = \"{ours}\" uses an answer's sum of log-probs here, and their mean there"
            ));
        }
    }
    for word in ["beta", "pref_beta"] {
        if let Some(given) = from.number(word) {
            draft.set("loss.beta", given.value, given.place);
        }
    }
    let simpo = draft.get("loss.policy").and_then(toml::Value::as_str) == Some("simpo");
    match from.number("simpo_gamma") {
        Some(given) if simpo => draft.set("loss.simpo_gamma", given.value, given.place),
        Some(given) => from.leave_given(&given, "has a meaning only with simpo"),
        // The default here is 0.
        None if simpo && from.program == Program::LlamaFactory => {
            draft.set("loss.simpo_gamma", 0.5, from.default_of("simpo_gamma"));
        }
        None => {}
    }
    if let Some(given) = from.number("dpo_label_smoothing") {
        match dpo {
            true => draft.set("loss.label_smoothing", given.value, given.place),
            false => from.leave_given(&given, "has a meaning only with dpo"),
        }
    }
    if let Some(given) = from.number("label_smoothing") {
        let why = match given.value == 0.0 {
            true => "0 is the default",
            false => {
                "TRL 1.16 ignores it with the sigmoid loss, which older versions smooth, as loss.label_smoothing does"
            }
        };
        from.leave_given(&given, why);
    }
}

fn precision(from: &mut Translation, draft: &mut Draft) {
    for word in ["bf16", "pure_bf16"] {
        let Some(given) = from.truth(word) else { continue };
        match (given.value, word) {
            (true, _) => {
                let place = format!("{}; masters and moments are f32 in any case.", given.place);
                draft.set("model.dtype", "bf16", place);
            }
            (false, "bf16") => draft.set("model.dtype", "f32", given.place),
            (false, _) => from.leave_given(&given, "bf16 sets the precision"),
        }
    }
    if let Some(given) = from.truth("fp16") {
        let why =
            "there is no fp16 here: model.dtype = \"auto\" is bf16 if the processor or GPU computes in it, else f32";
        from.leave_given(&given, why);
    }
    for word in ["dtype", "torch_dtype"] {
        let Some(given) = from.text(word) else { continue };
        match (&given.value[..], draft.get("model.dtype")) {
            ("bfloat16", None) => draft.set("model.dtype", "bf16", given.place),
            _ => from.leave_given(
                &given,
                "it sets the kind of the stored weights: masters are f32 here, and model.dtype is the kind of the computation",
            ),
        }
    }
}

fn template(from: &mut Translation) {
    if from.program == Program::LlamaFactory
        && let Some(given) = from.text("template")
    {
        from.leave_given(&given, "data.template takes the model folder's own chat template: compare the two");
    }
}

fn adapters(from: &mut Translation, draft: &mut Draft, model: &ModelFacts) -> Result<()> {
    let wanted = match from.program {
        Program::LlamaFactory => {
            let kind = from.text("finetuning_type");
            let wanted = kind.as_ref().is_none_or(|kind| kind.value == "lora");
            if let Some(kind) = kind.filter(|kind| kind.value != "lora") {
                let why = if kind.value == "full" {
                    "every weight is trained without [lora]"
                } else {
                    "every weight is trained, or adapters are"
                };
                from.leave_given(&kind, why);
            }
            wanted
        }
        _ => {
            let called = from.calls.iter().any(|call| call == "LoraConfig");
            let given = from.truth("use_peft");
            if let Some(given) = &given {
                from.leave_given(
                    given,
                    if given.value { "there is a [lora] table" } else { "every weight is trained without [lora]" },
                );
            }
            given.map_or(called, |given| given.value)
        }
    };
    let target = if from.program == Program::LlamaFactory { "lora_target" } else { "lora_target_modules" };
    for module in ["lora_modules_to_save", "additional_target"] {
        if let Some(given) = from.texts(module) {
            from.leave_given(&given, "only the reward head is trained along with adapters");
        }
    }
    if !wanted {
        from.leave_all(&["lora_r", "lora_rank", "lora_alpha", "use_rslora", target], "no adapters are asked for");
        return Ok(());
    }
    let rank = from.whole("lora_r").or_else(|| from.whole("lora_rank"));
    let alpha = from.number("lora_alpha");
    let rslora = from.truth("use_rslora");
    let targets = from.texts(target);
    let in_yaml = from.program == Program::Trl && !from.calls.iter().any(|call| call == "LoraConfig");
    let (rank, why) =
        rank.map_or((if in_yaml { 16 } else { 8 }, from.default_of("lora_r")), |given| (given.value, given.place));
    draft.set("lora.rank", rank as i64, why);
    let usual = match from.program {
        Program::LlamaFactory => 2.0 * rank as f64,
        _ if in_yaml => 32.0,
        _ => 8.0,
    };
    let (alpha, why) = alpha.map_or((usual, from.default_of("lora_alpha")), |given| (given.value, given.place));
    draft.set("lora.alpha", alpha, why);
    if let Some(given) = rslora {
        draft.set("lora.use_rslora", given.value, given.place);
    }
    let (targets, why) = projections(targets, &from.default_of(target), from.program, model)?;
    draft.set("lora.targets", targets, why);
    Ok(())
}

/// The projections with an adapter, by their names here.
fn projections(
    given: Option<Given<Vec<String>>>,
    default: &str,
    program: Program,
    model: &ModelFacts,
) -> Result<(Vec<String>, String)> {
    let all = || {
        model.architecture.as_ref().map(lora::all_targets).ok_or_else(|| {
            Error::input("the model's projections are not known: it could not be looked at")
                .hint("name its folder with --model, or name the projections in the file")
        })
    };
    match given {
        Some(given) if matches!(&given.value[..], [one] if one == "all-linear" || one == "all") => {
            Ok((all()?, format!("{}; those of this model.", given.place)))
        }
        Some(given) => {
            let name =
                |one: &String| one.chars().all(|letter| letter.is_alphanumeric() || letter == '_' || letter == '.');
            match given.value.iter().all(name) && !given.value.is_empty() {
                true => Ok((given.value, given.place)),
                false => Err(Error::input(format!("{}: expected names of projections", quoted(&given.place)))
                    .hint("an expression cannot be read here: write a list of names, or all-linear")),
            }
        }
        None if program == Program::LlamaFactory => Ok((all()?, format!("{default} That means all of them."))),
        None => {
            let known = all()?;
            let usual: [&[&str]; 3] = [&["q_proj", "v_proj"], &["query_key_value"], &["qkv_proj"]];
            let has = |names: &&&[&str]| names.iter().all(|name| known.iter().any(|one| one == name));
            match usual.iter().find(has) {
                Some(names) => Ok((
                    names.iter().map(|name| (*name).to_owned()).collect(),
                    format!("{default} These are PEFT's for such a model."),
                )),
                None => Ok((known, format!("{default} These are all of this model's."))),
            }
        }
    }
}
