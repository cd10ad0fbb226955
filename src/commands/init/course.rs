//! The course of a run in another program's words: batch, length, warm-up, schedule, lengths of sequences, evaluations,
//! checkpoints.
//!
//! A value that is converted has its arithmetic beside it. Not here: what is minimised (`method.rs`).

use super::draft::Draft;
use super::foreign::{Program, Trains};
use super::translate::{Said, Translation};

/// Pairs a device where nothing else is said, in all three programs.
const DEVICE_BATCH: usize = 8;
/// Epochs where nothing else is said, in all three programs.
const EPOCHS: f64 = 3.0;

/// Steps of a run as far as they are known, and why not.
struct Steps {
    /// Of the whole run.
    all: Option<usize>,
    /// Of an epoch.
    epoch: Option<usize>,
}

/// Translates all that; `pairs` are those of training, where they are counted.
pub fn translate(from: &mut Translation, draft: &mut Draft, pairs: Option<usize>) {
    let batch = batch(from, draft);
    let steps = length(from, draft, pairs, batch);
    learning_rate(from, draft);
    warmup(from, draft, &steps);
    sequences(from, draft);
    let every = |from: &mut Translation, draft: &mut Draft, what: [&str; 3]| looks(from, draft, &steps, what);
    every(from, draft, ["eval_strategy", "eval_steps", "eval.every"]);
    every(from, draft, ["save_strategy", "save_steps", "checkpoint.every"]);
    for (word, key) in
        [("disable_shuffling", "data.shuffle"), ("disable_gradient_checkpointing", "train.activation_checkpointing")]
    {
        if let Some(said) = from.truth(word) {
            draft.set(key, !said.value, said.place);
        }
    }
    if let Some(seed) = from.whole("data_seed").or_else(|| from.whole("seed")) {
        draft.set("data.seed", seed.value as i64, seed.place);
    }
    if from.has("seed")
        && let Some(seed) = from.whole("seed")
    {
        from.leave_said(&seed, "data_seed is taken, for the shuffle, which is all that is random");
    }
}

/// The global batch: what a device takes at a time, times what is accumulated, times the devices.
fn batch(from: &mut Translation, draft: &mut Draft) -> usize {
    let device = from.whole("per_device_train_batch_size");
    let accumulated = from.whole("gradient_accumulation_steps");
    let word = |said: &Option<Said<usize>>, name: &str| match said {
        Some(said) => format!("{} ({name}, line {})", said.value, said.line),
        None if from.is_unread(name) => {
            format!(
                "{} ({name}, the default: the file's is not readable)",
                if name.starts_with("per") { DEVICE_BATCH } else { 1 }
            )
        }
        None => format!("{} ({name}, the default)", if name.starts_with("per") { DEVICE_BATCH } else { 1 }),
    };
    let arithmetic = format!(
        "{} x {} x {} ({}): pairs of a step, over all ranks.",
        word(&device, "per_device_train_batch_size"),
        word(&accumulated, "gradient_accumulation_steps"),
        from.processes,
        if from.processes == 1 {
            "process: the file does not say how many there were, --processes N does"
        } else {
            "processes, --processes"
        }
    );
    let one = |said: Option<Said<usize>>, default: usize| said.map_or(default, |said| said.value.max(1));
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
            from.leave_said(&epochs, "max_steps counts before it");
        }
        return Steps { all: Some(steps.value), epoch };
    }
    let (count, place) = match epochs {
        Some(said) => (said.value, said.place),
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
            let note = format!("{place}: epochs are whole here; set train.steps to {count} x pairs / {batch}");
            from.leave_note(note);
            draft.set("train.epochs", 1, "See the end of this file: num_train_epochs is no whole number.");
            Steps { all: epoch, epoch }
        }
    }
}

impl Translation {
    /// `max_steps`, which counts where it is above 0.
    fn typed_steps(&mut self) -> Option<Said<usize>> {
        let steps = self.number("max_steps")?;
        if steps.value < 1.0 || steps.value.fract() != 0.0 || steps.value > 1e15 {
            self.leave_said(&steps, "counts where it is above 0 only");
            return None;
        }
        Some(Said { value: steps.value as usize, place: steps.place, line: steps.line })
    }
}

fn learning_rate(from: &mut Translation, draft: &mut Draft) {
    if !from.has("learning_rate") {
        let rate = match (from.program, from.trains) {
            (Program::Trl, Trains::Reward) => 1e-4,
            (Program::Trl, Trains::Policy) => 1e-6,
            (Program::Transformers | Program::LlamaFactory, _) => 5e-5,
        };
        let why = format!("{} Ours is 1e-5.", from.default_of("learning_rate"));
        draft.set("train.learning_rate", rate, why);
    }
    if !from.has("adam_epsilon") {
        draft.set(
            "train.adam_epsilon",
            1e-8,
            format!("{} Ours is 1e-5, the paper's.", from.default_of("adam_epsilon")),
        );
    }
}

/// Warm-up and the course after it.
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
            None => from.leave_said(
                &kind,
                "train.schedule is \"linear\", \"cosine\" or \"constant\": linear, the default, stays",
            ),
        }
    }
    // Where both are there, a number of steps above 0 counts, as in Transformers.
    for name in ["warmup_steps", "warmup_ratio"] {
        let Some(said) = from.number(name) else { continue };
        if said.value == 0.0 {
            from.leave_said(&said, "no warm-up is the default");
        } else if !warms {
            from.leave_said(&said, "lr_scheduler_type = constant has no warm-up there either");
        } else if draft.get("train.warmup_steps").is_some() {
            from.leave_said(&said, "warmup_steps counts before it");
        } else if said.value >= 1.0 && name == "warmup_steps" {
            draft.set("train.warmup_steps", said.value.min(1e15).ceil() as i64, said.place);
        } else if !(0.0..=1.0).contains(&said.value) {
            from.leave_said(&said, "expected a share of the steps, from 0 to 1");
        } else if let Some(all) = steps.all {
            let count = (said.value * all as f64).ceil() as i64;
            draft.set("train.warmup_steps", count, format!("{}; {} x {all} steps of the run.", said.place, said.value));
        } else {
            from.leave_said(
                &said,
                "how many steps the run has is not known here: set train.warmup_steps to that share of them",
            );
        }
    }
}

/// Lengths of sequences.
fn sequences(from: &mut Translation, draft: &mut Draft) {
    let name = if from.program == Program::LlamaFactory { "cutoff_len" } else { "max_length" };
    let unlimited = from.is_null(name);
    let said = from.whole(name);
    let default = match from.program {
        Program::Trl => Some(1024),
        Program::LlamaFactory => Some(2048),
        Program::Transformers => None,
    };
    match (said, default) {
        (Some(said), _) => draft.set("data.max_length", said.value as i64, said.place),
        (None, Some(default)) if !unlimited => {
            draft.set("data.max_length", default, from.default_of(name));
        }
        _ => {}
    }
    if let Some(prompt) = from.whole("max_prompt_length") {
        let whole = draft.get("data.max_length").and_then(toml::Value::as_integer);
        match prompt.value > 0 && whole.is_none_or(|whole| (prompt.value as i64) < whole) {
            true => draft.set("data.max_prompt_length", prompt.value as i64, prompt.place),
            false => from.leave_said(&prompt, "no prompt would be cut by it: it is not below data.max_length"),
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

/// Evaluations or checkpoints: how often.
fn looks(from: &mut Translation, draft: &mut Draft, steps: &Steps, [strategy, number, key]: [&str; 3]) {
    let strategy = from.text(strategy);
    let number = from.number(number);
    let kind = strategy.as_ref().map(|said| &said.value[..]);
    match (kind, strategy.as_ref(), number) {
        (Some("no"), Some(said), number) => {
            draft.set(key, 0, format!("{}: after the last step alone.", said.place));
            if let Some(number) = number {
                from.leave_said(&number, "has no meaning with \"no\"");
            }
        }
        (Some("epoch"), Some(said), number) => {
            match steps.epoch {
                Some(epoch) => draft.set(key, epoch as i64, format!("{}; the steps of an epoch.", said.place)),
                None => from.leave_said(said, &format!("set {key} to the pairs of an epoch / train.pairs_per_step")),
            }
            if let Some(number) = number {
                from.leave_said(&number, "has no meaning with \"epoch\"");
            }
        }
        (Some("steps") | None, said, Some(number)) if number.value >= 1.0 => {
            draft.set(key, number.value.min(1e15) as i64, both(said, &number));
        }
        (Some("steps") | None, said, Some(number)) if number.value > 0.0 => match steps.all {
            Some(all) => {
                let every = (number.value * all as f64).ceil() as i64;
                draft.set(key, every, format!("{}; {} x {all} steps of the run.", both(said, &number), number.value));
            }
            None => {
                let why = format!("how many steps the run has is not known here: set {key}");
                said.into_iter().for_each(|said| from.leave_said(said, &why));
                from.leave_said(&number, &why);
            }
        },
        (Some("steps"), Some(said), None) => {
            from.leave_said(said, &format!("without a number of steps: {key} is ours"))
        }
        (_, said, number) => {
            if let Some(said) = said {
                from.leave_said(said, &format!("{key} counts steps"));
            }
            if let Some(number) = number {
                from.leave_said(&number, "expected a number above 0");
            }
        }
    }
}

/// Where a strategy and its number were said.
fn both(strategy: Option<&Said<String>>, number: &Said<f64>) -> String {
    strategy.map(|said| format!("{}; ", said.place)).unwrap_or_default() + &number.place
}
