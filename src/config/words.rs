//! Names of other trainers. Keys and values of TRL, Transformers, PEFT, OpenRLHF and LLaMA-Factory with the same meaning as ours
//! are translated; the others are refused with a hint that names our key and its value.
//!
//! Not here: whole files of those trainers (`haf-dist init --from`), and mistyped keys (`keys.rs`).

use super::others;
use toml::{Table, Value};

/// (Their key, our key of the same meaning.)
const KEYS: &[(&str, &str)] = &[
    ("model.model_name_or_path", "model.path"),
    ("model.name_or_path", "model.path"),
    ("model.torch_dtype", "model.dtype"),
    ("data.cutoff_len", "data.max_length"),
    ("loss.center_rewards_coefficient", "loss.centering"),
    ("loss.loss_type", "loss.policy"),
    ("train.lr", "train.learning_rate"),
    ("train.max_steps", "train.steps"),
    ("train.num_train_epochs", "train.epochs"),
    ("train.max_epochs", "train.epochs"),
    ("train.batch_size", "train.pairs_per_step"),
    ("train.global_batch_size", "train.pairs_per_step"),
    ("train.train_batch_size", "train.pairs_per_step"),
    ("train.max_grad_norm", "train.clip_norm"),
    ("train.max_norm", "train.clip_norm"),
    ("train.lr_scheduler_type", "train.schedule"),
    ("train.lr_scheduler", "train.schedule"),
    ("train.gradient_checkpointing", "train.activation_checkpointing"),
    ("eval.eval_steps", "eval.every"),
    ("checkpoint.save_steps", "checkpoint.every"),
    ("checkpoint.save_total_limit", "checkpoint.keep"),
    ("lora.r", "lora.rank"),
    ("lora.lora_r", "lora.rank"),
    ("lora.lora_rank", "lora.rank"),
    ("lora.lora_alpha", "lora.alpha"),
    ("lora.target_modules", "lora.targets"),
    ("lora.lora_target", "lora.targets"),
    ("lora.lora_target_modules", "lora.targets"),
    ("output.output_dir", "output.dir"),
    ("output.save_path", "output.dir"),
];

/// (Our key, their value, our value of the same meaning.)
const VALUES: &[(&str, &str, &str)] = &[
    ("model.dtype", "bfloat16", "bf16"),
    ("model.dtype", "float32", "f32"),
    ("model.dtype", "fp32", "f32"),
    ("loss.policy", "sigmoid", "dpo"),
    ("train.schedule", "constant_with_warmup", "constant"),
];

/// (Our key, their value, hint): values that are refused.
const REFUSED_VALUES: &[(&str, &str, &str)] = &[
    (
        "model.dtype",
        "float16",
        "f16 is not supported: its range is too small for gradients; \"bf16\" takes the same memory",
    ),
    (
        "model.dtype",
        "fp16",
        "f16 is not supported: its range is too small for gradients; \"bf16\" takes the same memory",
    ),
    ("loss.objective", "dpo", "DPO alone is objective = \"policy\" with policy = \"dpo\" and alpha = 1"),
    ("loss.objective", "rm", "Bradley-Terry alone is objective = \"reward\""),
];

/// (Their key, hint): keys that are refused in any table.
const REFUSED_KEYS: &[(&str, &str)] = &[
    ("fp16", "f16 is not supported; model.dtype = \"bf16\" takes the same memory"),
    ("bf16", "the precision is model.dtype: \"bf16\", \"f32\" or \"auto\""),
    ("warmup_ratio", "train.warmup_steps counts updates: warmup_ratio x train.steps"),
    ("lora_dropout", "there is no dropout, as with lora_dropout = 0: leave it out"),
    ("packing", "leave it out: sequences are always packed, and there is no padding"),
    ("padding_free", "leave it out: sequences are always packed, and there is no padding"),
    ("ref_model", "leave it out: the reference is the starting model; its log-probs are computed once and cached"),
    ("precompute_ref_log_probs", "leave it out: the reference is always computed ahead, once, and cached"),
    ("use_peft", "leave it out: a [lora] table turns adapters on"),
    ("load_best_model_at_end", "leave it out: the best checkpoint on dev pairs is always kept"),
];

/// Keys that give the batch size per device.
const PER_DEVICE: [&str; 4] =
    ["per_device_train_batch_size", "per_device_batch_size", "micro_train_batch_size", "micro_batch_size"];
const ACCUMULATION: &str = "gradient_accumulation_steps";

/// Why another trainer's key or value is not accepted.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    /// The key, as typed.
    pub(super) path: Vec<String>,
    /// What is wrong.
    pub(super) message: String,
    /// Our key and its value.
    pub(super) hint: String,
}

/// Another trainer's key that was translated.
pub(super) struct Renamed {
    /// The key as typed.
    pub(super) typed: Vec<String>,
    /// Our key.
    pub(super) ours: Vec<String>,
}

/// Translates other trainers' names in a whole config. Returns the keys that were renamed.
pub(super) fn translate(config: &mut Value) -> Result<Vec<Renamed>, Refusal> {
    let mut renamed: Vec<Renamed> = Vec::new();
    let Some(tables) = config.as_table_mut() else { return Ok(renamed) };
    let names: Vec<String> = tables.keys().cloned().collect();
    for name in names {
        if let Some(hint) = hint_for_refused(&name, None) {
            return Err(Refusal::of_key(vec![name], hint));
        }
        let Some(table) = tables.get_mut(&name).and_then(Value::as_table_mut) else { continue };
        let keys: Vec<String> = table.keys().cloned().collect();
        for key in keys {
            let path = vec![name.clone(), key.clone()];
            if let Some(hint) = hint_for_refused(&key, Some(table)) {
                return Err(Refusal::of_key(path, hint));
            }
            let ours = ours(&path);
            let Some(value) = table.remove(&key) else { continue };
            let value = value_of(&ours, value).map_err(|refusal| Refusal { path: path.clone(), ..refusal })?;
            let inner = ours[1].clone();
            if ours != path {
                if table.contains_key(&inner) {
                    let earlier = renamed.iter().find(|renamed| renamed.ours == ours);
                    let other = earlier.map_or(&ours, |renamed| &renamed.typed).join(".");
                    let message = format!("`{}` and `{other}` are one key with two names", path.join("."));
                    return Err(Refusal { path, message, hint: "leave one of them out".into() });
                }
                renamed.push(Renamed { typed: path, ours });
            }
            table.insert(inner, value);
        }
    }
    Ok(renamed)
}

impl Refusal {
    fn of_key(path: Vec<String>, hint: String) -> Self {
        let message = format!("`{}` is a key of other trainers", path.join("."));
        Self { path, message, hint }
    }
}

/// Our key for `path`, which may be another trainer's.
pub(super) fn ours(path: &[String]) -> Vec<String> {
    let typed = path.join(".");
    match KEYS.iter().find(|(theirs, _)| *theirs == typed) {
        Some((_, ours)) => ours.split('.').map(String::from).collect(),
        None => path.to_vec(),
    }
}

/// What to write instead of a key that is unknown where it stands, by its last name.
pub(super) fn answer(word: &str) -> Option<String> {
    let is = |(theirs, _): &&(&str, &str)| theirs.rsplit('.').next() == Some(word);
    let same = KEYS.iter().find(is).map(|(_, ours)| format!("the key is `{ours}`, which means the same"));
    same.or_else(|| others::answer(word))
}

/// Our key for a typed one: `train.learning_rate` for `train.lr`.
pub(crate) fn key_meant(typed: &str) -> String {
    ours(&typed.split('.').map(|name| name.trim().to_owned()).collect::<Vec<_>>()).join(".")
}

/// The hint for a key that is refused, with numbers from its `table`; `None` for other keys.
pub(super) fn hint_for_refused(key: &str, table: Option<&Table>) -> Option<String> {
    let number = |key: &str| table.and_then(|table| table.get(key)).and_then(Value::as_integer);
    if PER_DEVICE.contains(&key) || key == ACCUMULATION {
        let device = PER_DEVICE.iter().find_map(|key| number(key));
        let product = match (device, number(ACCUMULATION)) {
            (Some(device), Some(accumulated)) => format!(" (here {device} x {accumulated} x ranks)"),
            (Some(device), None) => format!(" (here {device} x ranks, if gradients are not accumulated)"),
            _ => String::new(),
        };
        return Some(format!(
            "train.pairs_per_step is the global batch size: batch per device x accumulation steps x ranks{product}; \
             train.tokens_per_micro_batch bounds the memory"
        ));
    }
    let ratio = table.and_then(|table| table.get(key)).and_then(Value::as_float);
    if let ("warmup_ratio", Some(ratio)) = (key, ratio) {
        if let Some(steps) = number("steps").or(number("max_steps")) {
            let warmup = (ratio * steps as f64).ceil();
            return Some(format!("train.warmup_steps counts updates: {ratio} x {steps} steps = {warmup}"));
        }
        let epochs = table.and_then(|table| table.get("epochs").or(table.get("num_train_epochs")));
        let epochs = epochs.map_or("1 epoch".to_owned(), |epochs| format!("{epochs} epochs"));
        return Some(format!(
            "train.warmup_steps counts updates: {ratio} x the updates of the run, which has {epochs} of training pairs / \
             train.pairs_per_step updates each"
        ));
    }
    REFUSED_KEYS.iter().find(|(theirs, _)| *theirs == key).map(|(_, hint)| (*hint).to_owned())
}

/// Translates a value of our key `ours`.
pub(super) fn value_of(ours: &[String], value: Value) -> Result<Value, Refusal> {
    let key = ours.join(".");
    if let Value::String(word) = &value {
        if let Some((.., hint)) = REFUSED_VALUES.iter().find(|(of, theirs, _)| *of == key && theirs == word) {
            let message = format!("`{key}`: unknown value \"{word}\"");
            return Err(Refusal { path: ours.to_vec(), message, hint: (*hint).to_owned() });
        }
        if let Some((.., ours)) = VALUES.iter().find(|(of, theirs, _)| *of == key && theirs == word) {
            return Ok(Value::String((*ours).to_owned()));
        }
    }
    Ok(match (&key[..], value) {
        // A file, a list of files, one table: all are a list of sources.
        ("data.train" | "data.dev" | "data.test", value) => match value {
            Value::Array(rows) => Value::Array(rows.into_iter().map(source).collect()),
            one @ (Value::String(_) | Value::Table(_)) => Value::Array(vec![source(one)]),
            other => other,
        },
        ("lora.targets", Value::String(one)) => Value::Array(vec![Value::String(one)]),
        // `num_train_epochs = 3.0`
        ("train.epochs", Value::Float(number)) if number >= 1.0 && number.fract() == 0.0 && number < 1e9 => {
            Value::Integer(number as i64)
        }
        (_, value) => value,
    })
}

fn source(value: Value) -> Value {
    match value {
        Value::String(path) => Value::Table(Table::from_iter([("path".to_owned(), Value::String(path))])),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Dtype, PolicyLoss, Schedule, keys};
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("a.toml", text, &[]).unwrap()
    }

    const OURS: &str = "model.path = 'm'\noutput.dir = 'r'\n[[data.train]]\npath = 'x.jsonl'\n";

    /// Promise: every translation leads to a key of ours, and no key of ours is translated or refused.
    #[test]
    fn words_lead_to_keys_that_exist() {
        let tree = keys::tree();
        let known = |key: &str| keys::find(&tree, &key.split('.').map(String::from).collect::<Vec<_>>()).is_some();
        for (theirs, ours) in KEYS {
            assert!(known(ours) && !known(theirs), "{theirs} -> {ours}");
        }
        for key in VALUES.iter().chain(REFUSED_VALUES).map(|(key, ..)| key) {
            assert!(known(key), "{key}");
        }
        let ours = super::super::known_keys();
        for key in REFUSED_KEYS.iter().map(|(key, _)| *key).chain(PER_DEVICE).chain([ACCUMULATION]) {
            assert!(ours.iter().all(|ours| ours.rsplit('.').next() != Some(key)), "{key} is a key of ours");
        }
    }

    #[test]
    fn words_that_mean_the_same_make_the_same_config() {
        let plain = config(&format!(
            "{OURS}[train]\nlearning_rate = 2e-5\nepochs = 3\npairs_per_step = 32\nschedule = 'constant'\n\
             [lora]\nrank = 8\nalpha = 32.0\ntargets = ['all-linear']\n[loss]\npolicy = 'dpo'\n"
        ));
        let theirs = config(
            "model.model_name_or_path = 'm'\noutput.output_dir = 'r'\ndata.train = 'x.jsonl'\n\
             [train]\nlr = 2e-5\nnum_train_epochs = 3.0\nbatch_size = 32\nlr_scheduler_type = 'constant_with_warmup'\n\
             [lora]\nr = 8\nlora_alpha = 32\ntarget_modules = 'all-linear'\n[loss]\nloss_type = 'sigmoid'\n",
        );
        assert_eq!(theirs, plain);
        assert_eq!((theirs.loss.policy, theirs.train.schedule), (PolicyLoss::Dpo, Schedule::Constant));
        let on_the_line = ["train.lr=2e-5", "model.torch_dtype=bfloat16", "data.train=y.jsonl", "data.dev=['a', 'b']"];
        let set: Vec<String> = on_the_line.map(String::from).to_vec();
        let typed = Config::parse("a.toml", OURS, &set).unwrap();
        assert_eq!((typed.train.learning_rate, typed.model.dtype), (2e-5, Dtype::Bf16));
        assert_eq!(typed.data.train[0].path.to_str(), Some("y.jsonl"));
        assert_eq!(typed.data.dev.len(), 2);
        let list = config(
            "model.path = 'm'\noutput.dir = 'r'\n[data]\ntrain = ['x.jsonl', { path = 'z.jsonl', weight = 2.0 }]\n",
        );
        assert_eq!(list.data.train.iter().map(|source| source.weight).collect::<Vec<_>>(), [1.0, 2.0]);
    }

    /// Promise: whatever table it stands in, a word of other trainers is answered, with a key that exists or a reason.
    #[test]
    fn words_in_other_tables_are_answered() {
        for (word, says) in [
            ("lr", "`train.learning_rate`"),
            ("batch_size", "`train.pairs_per_step`"),
            ("num_train_epochs", "`train.epochs`"),
            ("model_name_or_path", "`model.path`"),
            ("center_rewards_coefficient", "`loss.centering`"),
            ("val_size", "rows = "),
            ("eval_steps", "`eval.every`"),
            ("save_steps", "`checkpoint.every`"),
            ("logging_steps", "metrics.jsonl"),
            ("max_steps", "`train.steps`"),
            ("seed", "data.seed"),
            ("optim", "AdamW"),
            ("report_to", "no tracker"),
            ("deepspeed", "parallel.shard_optimizer"),
            ("zero_stage", "parallel.shard_optimizer"),
            ("lr_scheduler_type", "`train.schedule`"),
            ("dataset_name", "data.train"),
            ("bias", "no biases"),
            ("type", "AdamW"),
            ("adam_epsilon", "`train.adam_epsilon`"),
            ("hub_model_id", "haf-dist export"),
        ] {
            for key in [word.to_owned(), format!("parallel.{word}")] {
                let error = Config::parse("a.toml", OURS, &[format!("{key}=1")]).unwrap_err();
                assert!(error.hint.as_ref().is_some_and(|hint| hint.contains(says)), "{key}: {error}");
            }
        }
        let hint = |set: &str| Config::parse("a.toml", OURS, &[set.to_owned()]).unwrap_err().hint.unwrap();
        assert_eq!(hint("train.stepz=1"), "did you mean `train.steps`?");
        assert!(!hint("train.sharpness=1").contains("did you mean"), "too far from any key");
        assert!(hint("=5").contains("loss.alpha=0.5"));
    }

    #[test]
    fn words_that_mean_something_else_are_answered_where_they_stand() {
        let refused = |text: &str, set: &[&str]| {
            let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
            Config::parse("a.toml", &format!("{OURS}{text}"), &set).unwrap_err().to_string()
        };
        let batch = "[train]\nper_device_train_batch_size = 4\ngradient_accumulation_steps = 2\n";
        let answer = refused(batch, &[]);
        assert!(answer.starts_with("a.toml:") && answer.contains("here 4 x 2 x ranks"), "{answer}");
        let by_epochs = refused("[train]\nepochs = 2\nwarmup_ratio = 0.1\n", &[]);
        assert!(by_epochs.contains("0.1 x the updates of the run, which has 2 epochs"), "{by_epochs}");
        let on_the_line = refused("[train]\nsteps = 41\n", &["train.warmup_ratio=0.1"]);
        assert!(on_the_line.contains("0.1 x 41 steps = 5"), "{on_the_line}");
        assert!(refused("[train]\nsteps = 41\nwarmup_ratio = 0.1\n", &[]).contains("0.1 x 41 steps = 5"));
        assert!(refused("", &["train.warmup_ratio=0.1"]).contains("--set train.warmup_ratio=0.1"));
        assert!(refused("[model2]\nx = 1\n", &[]).contains("unknown table"), "other unknown names stay unknown");
        assert!(refused("[loss]\nobjective = 'dpo'\n", &[]).contains("alpha = 1"));
        assert!(refused("", &["model.dtype=fp16"]).contains("bf16"));
        let twice = refused("[train]\nlr = 1.0\nlearning_rate = 1.0\n", &[]);
        assert!(twice.starts_with("a.toml:6: `train.lr` and `train.learning_rate`"), "{twice}");
        let both_theirs = refused("[lora]\nlora_r = 4\nr = 4\n", &[]);
        assert!(both_theirs.contains("`lora.r` and `lora.lora_r` are one key"), "as typed: {both_theirs}");
        assert_eq!(
            [" train.lr ", "train.steps", "nothing"].map(key_meant),
            ["train.learning_rate", "train.steps", "nothing"]
        );
        // A wrong value of a translated key is shown at its line.
        let wrong = refused("[train]\n\nmax_steps = 'many'\n", &[]);
        assert!(wrong.starts_with("a.toml:7: `train.steps`"), "{wrong}");
    }
}
