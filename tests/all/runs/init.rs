//! Promise: what `haf-dist init` writes loads, is accepted by `check` and trains; it says where every value is from, drops
//! nothing of a foreign config, overwrites nothing, and answers a hostile file with an error.

use crate::tiny::{Outcome, Workspace};
use haf_dist::config::Config;
use serde_json::json;
use std::time::Duration;

fn init(workspace: &Workspace, arguments: &[&str]) -> Outcome {
    workspace.run(1, &[&["init"], arguments].concat())
}

/// A config's text, once it was loaded and `check` has nothing against it.
fn accepted(workspace: &Workspace, name: &str) -> (String, Config) {
    let config = Config::load(&workspace.path(name), &[]).unwrap();
    workspace.run(1, &["check", name]).succeeded();
    (String::from_utf8(workspace.read(name)).unwrap(), config)
}

/// Without what differs from machine to machine.
fn without_memory(text: &str) -> String {
    let of_machine = |line: &&str| ["# Memory:", "# model.dtype stays"].iter().any(|start| line.starts_with(start));
    text.lines().filter(|line| !of_machine(line)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_model_and_pairs_make_a_config_that_trains() {
    let workspace = Workspace::new();
    let data =
        ["--model", "model", "--train", "plain.jsonl", "other.jsonl", "--dev", "dev.jsonl", "--test", "test.jsonl"];
    let arguments = [&data[..], &["--out", "new.toml"]].concat();
    let outcome = init(&workspace, &arguments).succeeded();
    assert!(outcome.stdout.contains("haf-dist check new.toml"), "{}", outcome.stdout);
    let (text, _) = accepted(&workspace, "new.toml");
    insta::assert_snapshot!("init", without_memory(&text));
    let set = ["model.dtype=f32", "parallel.threads=1", "data.cache_dir=cache"];
    workspace.run(1, &[&["train", "new.toml"], &set[..]].concat()).succeeded();
    assert_eq!(workspace.losses("runs/new").len(), 1, "11 pairs are one step of 16");

    // What is there stays as it is, and standard output needs no file.
    let again = init(&workspace, &arguments);
    assert_eq!((again.code, &again.errors()[..]), (2, &["error: new.toml exists already and is not overwritten"][..]));
    assert_eq!(workspace.read("new.toml"), text.as_bytes());
    let quoted = init(&workspace, &[&data[..], &["--out", "it's new.toml"]].concat()).succeeded();
    assert!(quoted.stdout.contains(r"haf-dist check 'it'\''s new.toml'"), "{}", quoted.stdout);
    let printed = init(&workspace, &[&data[..], &["--out", "-", "--output-dir", "runs/new"]].concat()).succeeded();
    assert_eq!(without_memory(&printed.stdout), without_memory(&text));
}

#[test]
fn missing_settings_are_asked_for() {
    let workspace = Workspace::new();
    for (arguments, missing, hint) in [
        (&["--train", "plain.jsonl"][..], "no model to start from", "--model FOLDER"),
        (&["--model", "model"], "no data to train on", "--train FILE"),
        (&["--model", "nowhere", "--train", "plain.jsonl"], "nowhere", "hint"),
        (&["--model", "model", "--train", "nothing.jsonl"], "nothing.jsonl", "hint"),
    ] {
        let outcome = init(&workspace, &[arguments, &["--out", "out.toml"]].concat());
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(missing) && outcome.stderr.contains(hint), "{}", outcome.stderr);
        assert!(!workspace.path("out.toml").exists());
    }
}

#[test]
fn a_base_model_gets_a_template_of_ours() {
    let workspace = Workspace::new();
    workspace.write("model/tokenizer_config.json", &json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string());
    init(&workspace, &["--model", "model", "--train", "plain.jsonl", "--out", "new.toml"]).succeeded();
    let (text, _) = accepted(&workspace, "new.toml");
    assert!(text.contains("It has no chat template") && text.contains("template = \"instruct\""), "{text}");
}

/// Without weights in the cache: they are not needed.
#[test]
fn a_model_and_pairs_in_the_hubs_cache_are_looked_at() {
    let workspace = Workspace::new();
    let from_hub = ["--model", "hf://owner/tiny", "--train", "hf://owner/pairs/plain.jsonl", "--out"];
    init(&workspace, &[&from_hub[..], &["unseen.toml"]].concat()).succeeded();
    let read = |name| String::from_utf8(workspace.read(name)).unwrap();
    let unseen = read("unseen.toml");
    assert!(unseen.contains("It could not be looked at") && unseen.contains("On the hub: not looked at"), "{unseen}");

    for (repository, files) in [
        ("models--owner--tiny", &["model/config.json", "model/tokenizer.json", "model/tokenizer_config.json"][..]),
        ("datasets--owner--pairs", &["plain.jsonl"]),
    ] {
        let folder = workspace.path(format!("hub/{repository}"));
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "c0ffee").unwrap();
        std::fs::create_dir_all(folder.join("snapshots/c0ffee")).unwrap();
        for file in files {
            let name = file.rsplit('/').next().unwrap();
            std::fs::copy(workspace.path(file), folder.join("snapshots/c0ffee").join(name)).unwrap();
        }
    }
    init(&workspace, &[&from_hub[..], &["seen.toml"]].concat()).succeeded();
    let local = ["--model", "model", "--train", "plain.jsonl", "--out", "local.toml"];
    init(&workspace, &local).succeeded();
    let same = |line: &str| !["path", "dir =", "train =", "#   "].iter().any(|word| line.contains(word));
    let of = |text: String| text.lines().filter(|line| same(line)).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(of(without_memory(&read("seen.toml"))), of(without_memory(&read("local.toml"))));
}

const TRL: &str = "\
# trl reward --config trl.yaml
model_name_or_path: model
datasets:
  - path: json
    data_files: plain.jsonl
output_dir: runs/trl
learning_rate: 1.0e-5
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
num_train_epochs: 2
max_length: 60
warmup_ratio: 0.25
eval_strategy: steps
eval_steps: 0.5
save_strategy: epoch
lr_scheduler_type: cosine
seed: 3
data_seed: 4
bf16: true
use_peft: true
lora_r: 4
lora_alpha: 8
lora_target_modules: all-linear
lora_dropout: 0.05
center_rewards_coefficient: 0.01
logging_steps: 5
report_to: wandb
deepspeed: ds.json
new_word: 1
";

const FACTORY: &str = "\
### model
model_name_or_path: model
stage: dpo
do_train: true
finetuning_type: full
dataset: mine
dataset_dir: .
template: llama3
cutoff_len: 60
pref_loss: sigmoid
pref_beta: 0.2
output_dir: runs/factory
per_device_train_batch_size: 1
gradient_accumulation_steps: 4
learning_rate: 5.0e-6
max_steps: 2
plot_loss: true
";

const SCRIPT: &str = "\
from trl import RewardConfig, RewardTrainer
args = RewardConfig(
    output_dir='runs/script',
    learning_rate=2e-5, max_steps=3,
    per_device_train_batch_size=4,
    max_length=MAX,  # a name
    gradient_checkpointing=False,
)
trainer = RewardTrainer('model', args=args,
    train_dataset=load_dataset('json', data_files='plain.jsonl', split='train'))
";

/// `args` names no variable of the script.
const ANOTHER_SCRIPT: &str = "from trl import RewardConfig, RewardTrainer

trainer = RewardTrainer('model', args=RewardConfig(output_dir='runs/script', max_steps=3),
    train_dataset=load_dataset('json', data_files='plain.jsonl', split='train'))
RewardTrainer('model', args=args)
";

/// Lines of a foreign file that begin a key, by number.
fn lines_with(text: &str, says: impl Fn(&str) -> bool) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| says(line)).map(|(at, _)| at + 1).collect()
}

#[test]
fn foreign_configs_become_configs_that_load_and_lose_no_line() {
    let workspace = Workspace::new();
    workspace.write("dataset_info.json", &json!({"mine": {"file_name": "plain.jsonl", "ranking": true}}).to_string());
    let key = |line: &str| !line.starts_with([' ', '#', '-']) && line.contains(':');
    for (name, content, lines) in [
        ("trl.yaml", TRL, lines_with(TRL, key)),
        ("factory.yaml", FACTORY, lines_with(FACTORY, key)),
        ("script.py", SCRIPT, vec![3, 4, 5, 6, 7, 9, 10]),
        ("another.py", ANOTHER_SCRIPT, vec![3, 5]),
    ] {
        workspace.write(name, content);
        let out = format!("{name}.toml");
        init(&workspace, &["--from", name, "--out", &out]).succeeded();
        let (text, _) = accepted(&workspace, &out);
        for line in lines {
            let places = [format!("line {line}:"), format!("line {line})")];
            let flat = text.replace("\n#", "").split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(places.iter().any(|place| flat.contains(place)), "line {line} of {name} is lost in\n{text}");
        }
    }
    let config = |name: &str| accepted(&workspace, name).1;
    let trl = config("trl.yaml.toml");
    assert_eq!((trl.train.pairs_per_step, trl.train.epochs, trl.data.max_length), (4, Some(2), 60));
    assert_eq!(trl.train.warmup_steps, 1, "a quarter of 2 epochs of 2 steps");
    assert_eq!(trl.lora.map(|lora| (lora.rank, lora.targets.len())), Some((4, 7)));
    let factory = config("factory.yaml.toml");
    assert_eq!((factory.train.steps, factory.loss.beta, factory.train.pairs_per_step), (Some(2), 0.2, 4));
    let script = config("script.py.toml");
    assert_eq!((script.train.steps, script.train.learning_rate), (Some(3), 2e-5));
    let set = ["model.dtype=f32", "parallel.threads=1", "data.cache_dir=cache"];
    workspace.run(1, &[&["train", "trl.yaml.toml"], &set[..]].concat()).succeeded();
}

#[test]
fn a_hostile_file_is_an_error_at_once_and_nothing_is_written() {
    let workspace = Workspace::new();
    let files: [(&str, Vec<u8>); 10] = [
        ("empty.yaml", Vec::new()),
        ("empty.py", Vec::new()),
        ("binary.yaml", (0..=255).collect()),
        ("binary.py", vec![0xff; 1000]),
        ("large.yaml", vec![b'a'; (1 << 20) + 1]),
        ("deep.yaml", ["a: ".to_owned(), "[".repeat(100_000)].concat().into()),
        ("deep.py", "RewardConfig(".repeat(50_000).into()),
        ("many.yaml", (0..50_000).map(|number| format!("k{number}: 1\n")).collect::<String>().into()),
        ("sft.yaml", b"stage: sft\nmodel_name_or_path: model\n".to_vec()),
        ("wrong.yaml", b"model_name_or_path: model\nbeta: -1\n".to_vec()),
    ];
    for (name, content) in &files {
        std::fs::write(workspace.path(name), content).unwrap();
        let outcome = init(&workspace, &["--from", name, "--train", "plain.jsonl", "--out", "out.toml"]);
        assert_eq!(outcome.code, 2, "{name}: {}", outcome.stderr);
        assert!(outcome.errors()[0].contains(name), "{name}: {}", outcome.stderr);
        assert!(outcome.took < Duration::from_secs(20), "{name}: {:?}", outcome.took);
        assert!(!workspace.path("out.toml").exists(), "{name}");
    }
}
