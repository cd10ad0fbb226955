//! Translates the course of a run from another program's config: batch, length, warm-up, schedule, lengths of sequences,
//! evaluations, checkpoints.
//!
//! A converted value is written with its arithmetic. Not here: the losses (`method.rs`).

use super::draft::Draft;
use super::foreign::{Program, Trains};
use super::translate::{Given, Translation};

/// Default number of pairs per device in all three programs.
const DEVICE_BATCH: usize = 8;
/// Default number of epochs in all three programs.
const EPOCHS: f64 = 3.0;

/// Numbers of steps, if they are known.
struct Steps {
    /// In the whole run.
    all: Option<usize>,
    /// In an epoch.
    epoch: Option<usize>,
}

/// Translates all of these; `pairs` is the number of training pairs, if it is known.
pub(crate) fn translate(from: &mut Translation, draft: &mut Draft, pairs: Option<usize>) {
    let batch = batch(from, draft);
    let steps = length(from, draft, pairs, batch);
    learning_rate(from, draft);
    warmup(from, draft, &steps);
    sequences(from, draft);
    let every = |from: &mut Translation, draft: &mut Draft, what: [&str; 3]| intervals(from, draft, &steps, what);
    every(from, draft, ["eval_strategy", "eval_steps", "eval.every"]);
    every(from, draft, ["save_strategy", "save_steps", "checkpoint.every"]);
    for (word, key) in
        [("disable_shuffling", "data.shuffle"), ("disable_gradient_checkpointing", "train.activation_checkpointing")]
    {
        if let Some(given) = from.truth(word) {
            draft.set(key, !given.value, given.place);
        }
    }
    if let Some(seed) = from.whole("data_seed").or_else(|| from.whole("seed")) {
        draft.set("data.seed", seed.value as i64, seed.place);
    }
    if from.has("seed")
        && let Some(seed) = from.whole("seed")
    {
        from.leave_given(&seed, "data_seed is taken, for the shuffle: nothing else is random");
    }
}

/// The global batch: pairs per device, times accumulation steps, times devices.
fn batch(from: &mut Translation, draft: &mut Draft) -> usize {
    let device = from.whole("per_device_train_batch_size");
    let accumulated = from.whole("gradient_accumulation_steps");
    let word = |given: &Option<Given<usize>>, name: &str| match given {
        Some(given) => format!("{} ({name}, line {})", given.value, given.line),
        None if from.is_unread(name) => {
            format!(
                "{} ({name}, the default: the file's value is not readable)",
                if name.starts_with("per") { DEVICE_BATCH } else { 1 }
            )
        }
        None => format!("{} ({name}, the default)", if name.starts_with("per") { DEVICE_BATCH } else { 1 }),
    };
    let arithmetic = format!(
        "{} x {} x {} ({}): pairs in a step, over all ranks.",
        word(&device, "per_device_train_batch_size"),
        word(&accumulated, "gradient_accumulation_steps"),
        from.processes,
        if from.processes == 1 {
            "process: the file does not say how many there were, set it with --processes N"
        } else {
            "processes, --processes"
        }
    );
    let one = |given: Option<Given<usize>>, default: usize| given.map_or(default, |given| given.value.max(1));
    let batch = one(device, DEVICE_BATCH).saturating_mul(one(accumulated, 1)).saturating_mul(from.processes);
    draft.set("train.pairs_per_step", i64::try_from(batch).unwrap_or(i64::MAX), arithmetic);
    batch
}

fn length(from: &mut Translation, draft: &mut Draft, pairs: Option<usize>, batch: usize) -> Steps {
    let epoch = pairs.map(|pairs| pairs.div_ceil(batch).max(1));
    let epochs = from.number("num_train_epochs");
    let steps = from.typed_steps();
    if let Some(steps) = steps {
        draft.set("train.steps", steps.value as i64, steps.place);
        if let Some(epochs) = epochs {
            from.leave_given(&epochs, "max_steps overrides it");
        }
        return Steps { all: Some(steps.value), epoch };
    }
    let (count, place) = match epochs {
        Some(given) => (given.value, given.place),
        None => (EPOCHS, from.default_of("num_train_epochs")),
    };
    if count >= 1.0 && count.fract() == 0.0 && count < 1e6 {
        draft.set("train.epochs", count as i64, place);
        return Steps { all: epoch.map(|epoch| (count as usize).saturating_mul(epoch)), epoch };
    }
    match epoch.filter(|_| count > 0.0 && count < 1e6) {
        Some(epoch) => {
            let all = (count * epoch as f64).ceil() as usize;
            draft.set("train.steps", all as i64, format!("{place}; {count} x {epoch} steps of an epoch."));
            Steps { all: Some(all), epoch: Some(epoch) }
        }
        None => {
            let note = format!(
                "{place}: train.epochs is a whole number; set train.steps to {count} x pairs / {batch} instead"
            );
            from.leave_note(note);
            draft.set("train.epochs", 1, "See the end of this file: num_train_epochs is not a whole number.");
            Steps { all: epoch, epoch }
        }
    }
}

impl Translation {
    /// `max_steps`, which has a meaning only above 0.
    fn typed_steps(&mut self) -> Option<Given<usize>> {
        let steps = self.number("max_steps")?;
        if steps.value < 1.0 || steps.value.fract() != 0.0 || steps.value > 1e15 {
            self.leave_given(&steps, "has a meaning only above 0");
            return None;
        }
        Some(Given { value: steps.value as usize, place: steps.place, line: steps.line })
    }
}

fn learning_rate(from: &mut Translation, draft: &mut Draft) {
    if !from.has("learning_rate") {
        let rate = match (from.program, from.trains) {
            (Program::Trl, Trains::Reward) => 1e-4,
            (Program::Trl, Trains::Policy) => 1e-6,
            (Program::Transformers | Program::LlamaFactory, _) => 5e-5,
        };
        let why = format!("{} The default here is 1e-5.", from.default_of("learning_rate"));
        draft.set("train.learning_rate", rate, why);
    }
    if !from.has("adam_epsilon") {
        draft.set(
            "train.adam_epsilon",
            1e-8,
            format!("{} The default here is 1e-5, the paper's.", from.default_of("adam_epsilon")),
        );
    }
}

/// Warm-up, and the schedule after it.
fn warmup(from: &mut Translation, draft: &mut Draft, steps: &Steps) {
    let kind = from.text("lr_scheduler_type");
    let warms = kind.as_ref().is_none_or(|kind| kind.value != "constant");
    if let Some(kind) = kind {
        let ours = match &kind.value[..] {
            "linear" => Some("linear"),
            "cosine" => Some("cosine"),
            "constant" | "constant_with_warmup" => Some("constant"),
            _ => None,
        };
        match ours {
            Some(ours) => draft.set("train.schedule", ours, kind.place),
            None => from.leave_given(
                &kind,
                "train.schedule is \"linear\", \"cosine\" or \"constant\": it stays at linear, the default",
            ),
        }
    }
    // If there are both, a number of steps above 0 overrides the ratio, as in Transformers.
    for name in ["warmup_steps", "warmup_ratio"] {
        let Some(given) = from.number(name) else { continue };
        if given.value == 0.0 {
            from.leave_given(&given, "no warm-up is the default");
        } else if !warms {
            from.leave_given(&given, "lr_scheduler_type = constant has no warm-up there either");
        } else if draft.get("train.warmup_steps").is_some() {
            from.leave_given(&given, "warmup_steps overrides it");
        } else if given.value >= 1.0 && name == "warmup_steps" {
            draft.set("train.warmup_steps", given.value.min(1e15).ceil() as i64, given.place);
        } else if !(0.0..=1.0).contains(&given.value) {
            from.leave_given(&given, "expected a share of the steps, from 0 to 1");
        } else if let Some(all) = steps.all {
            let count = (given.value * all as f64).ceil() as i64;
            draft.set(
                "train.warmup_steps",
                count,
                format!("{}; {} x {all} steps of the run.", given.place, given.value),
            );
        } else {
            from.leave_given(
                &given,
                "the number of steps is not known here: set train.warmup_steps to that share of it",
            );
        }
    }
}

/// Lengths of sequences.
fn sequences(from: &mut Translation, draft: &mut Draft) {
    let name = if from.program == Program::LlamaFactory { "cutoff_len" } else { "max_length" };
    let unlimited = from.is_null(name);
    let given = from.whole(name);
    let default = match from.program {
        Program::Trl => Some(1024),
        Program::LlamaFactory => Some(2048),
        Program::Transformers => None,
    };
    match (given, default) {
        (Some(given), _) => draft.set("data.max_length", given.value as i64, given.place),
        (None, Some(default)) if !unlimited => {
            draft.set("data.max_length", default, from.default_of(name));
        }
        _ => {}
    }
    if let Some(prompt) = from.whole("max_prompt_length") {
        let whole = draft.get("data.max_length").and_then(toml::Value::as_integer);
        match prompt.value > 0 && whole.is_none_or(|whole| (prompt.value as i64) < whole) {
            true => draft.set("data.max_prompt_length", prompt.value as i64, prompt.place),
            false => from.leave_given(&prompt, "it would truncate no prompt: it is not below data.max_length"),
        }
    }
    if from.program == Program::Trl && from.trains == Trains::Reward {
        let why = "TRL's reward trainer reads the reward there; the default, \"eos\", is the end of the answer's turn.";
        draft.set("data.reward_at", "end", why);
        if draft.get("data.max_length").is_some() {
            let why = "TRL's reward trainer leaves longer pairs out; \"cut\", the default, truncates them.";
            draft.set("data.truncation", "drop", why);
        }
    }
}

/// How often there are evaluations or checkpoints.
fn intervals(from: &mut Translation, draft: &mut Draft, steps: &Steps, [strategy, number, key]: [&str; 3]) {
    let strategy = from.text(strategy);
    let number = from.number(number);
    let kind = strategy.as_ref().map(|given| &given.value[..]);
    match (kind, strategy.as_ref(), number) {
        (Some("no"), Some(given), number) => {
            draft.set(key, 0, format!("{}: only after the last step.", given.place));
            if let Some(number) = number {
                from.leave_given(&number, "has no meaning with \"no\"");
            }
        }
        (Some("epoch"), Some(given), number) => {
            match steps.epoch {
                Some(epoch) => draft.set(key, epoch as i64, format!("{}; the steps of an epoch.", given.place)),
                None => from.leave_given(given, &format!("set {key} to the pairs in an epoch / train.pairs_per_step")),
            }
            if let Some(number) = number {
                from.leave_given(&number, "has no meaning with \"epoch\"");
            }
        }
        (Some("steps") | None, given, Some(number)) if number.value >= 1.0 => {
            draft.set(key, number.value.min(1e15) as i64, both(given, &number));
        }
        (Some("steps") | None, given, Some(number)) if number.value > 0.0 => match steps.all {
            Some(all) => {
                let every = (number.value * all as f64).ceil() as i64;
                draft.set(key, every, format!("{}; {} x {all} steps of the run.", both(given, &number), number.value));
            }
            None => {
                let why = format!("the number of steps is not known here: set {key}");
                given.into_iter().for_each(|given| from.leave_given(given, &why));
                from.leave_given(&number, &why);
            }
        },
        (Some("steps"), Some(given), None) => {
            from.leave_given(given, &format!("without a number of steps: {key} stays at the default"))
        }
        (_, given, number) => {
            if let Some(given) = given {
                from.leave_given(given, &format!("{key} counts steps"));
            }
            if let Some(number) = number {
                from.leave_given(&number, "expected a number above 0");
            }
        }
    }
}

/// The places of a strategy and its number.
fn both(strategy: Option<&Given<String>>, number: &Given<f64>) -> String {
    strategy.map(|given| format!("{}; ", given.place)).unwrap_or_default() + &number.place
}
