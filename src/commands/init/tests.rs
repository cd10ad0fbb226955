//! Promise: what another program's config says is taken over, converted with its arithmetic, or listed; model and data are
//! found as it means them.
//!
//! Not here: whole configs of files that are there (`tests/all/runs/init.rs`).

#![allow(clippy::unwrap_used)]
use super::foreign::{Program, Trains};
use super::*;

fn translation(name: &str, text: &str, processes: usize) -> Translation {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    Translation::new(foreign::read(&path).unwrap(), processes)
}

/// The rendered config of a translation without model and data.
fn course(name: &str, text: &str, processes: usize, pairs: Option<usize>) -> String {
    let mut from = translation(name, text, processes);
    let mut draft = Draft::default();
    course::translate(&mut from, &mut draft, pairs);
    let model = ModelFacts {
        architecture: None,
        tokenizer: None,
        chat: true,
        language_model_head: true,
        adapter: None,
        about: Vec::new(),
    };
    method::translate(&mut from, &mut draft, &model).unwrap();
    from.finish(&mut draft);
    draft.render(Some(name))
}

#[track_caller]
fn assert_says(text: &str, lines: &[&str]) {
    let flat = text.lines().map(|line| line.trim_start_matches("#").trim()).collect::<Vec<_>>().join(" ");
    for line in lines {
        assert!(text.lines().any(|found| found == *line) || flat.contains(line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn a_batch_is_what_a_device_takes_times_what_is_accumulated_times_the_processes() {
    let yaml = "center_rewards_coefficient: 0.01\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 8\n";
    let text = course("a.yaml", yaml, 2, None);
    assert_says(
        &text,
        &[
            "pairs_per_step = 64",
            "4 (per_device_train_batch_size, line 2) x 8 (gradient_accumulation_steps, line 3) x 2 (processes, --processes)",
            "centering = 0.01",
            "objective = \"reward\"",
            // What TRL does where the file is silent.
            "epochs = 3",
            "learning_rate = 1e-4",
            "max_length = 1024",
            "truncation = \"drop\"",
        ],
    );
    assert_says(&course("a.yaml", yaml, 1, None), &["pairs_per_step = 32", "how many there were is not in the file"]);
}

#[test]
fn shares_of_the_run_become_steps_where_the_pairs_are_counted() {
    let yaml = "loss_type: hinge\nnum_train_epochs: 2\nper_device_train_batch_size: 10\nwarmup_ratio: 0.1\n\
                eval_strategy: steps\neval_steps: 0.25\nsave_strategy: epoch\nlr_scheduler_type: cosine\n";
    let known = course("a.yaml", yaml, 1, Some(1000));
    assert_says(
        &known,
        &[
            "epochs = 2",
            "warmup_steps = 20",
            "0.1 x 200 steps of the run",
            "policy = \"hinge\"",
            "objective = \"policy\"",
            "schedule = \"cosine\"",
            "every = 50",
            "every = 100",
            "learning_rate = 1e-6",
        ],
    );
    let unknown = course("a.yaml", yaml, 1, None);
    assert!(!unknown.contains("warmup_steps ="), "{unknown}");
    assert_says(&unknown, &["line 4: warmup_ratio = 0.1: how many steps the run has is not known here"]);
}

#[test]
fn what_has_no_counterpart_is_listed_with_its_line_and_a_reason() {
    let yaml = "beta: 0.2\nlogging_steps: 10\nfrobnicate: [1, 2]\nlora_r: 8\nlearning_rate: fast\nseed:\n\
                disable_dropout: true\nfp16: true\nlearning_rate: 2e-6\n";
    let text = course("a.yaml", yaml, 1, None);
    assert_says(
        &text,
        &[
            "beta = 0.2",
            "line 2: logging_steps = 10: every step's figures go into metrics.jsonl",
            "line 3: frobnicate = [1,2]: not a word that is known here: see whether it matters",
            "line 4: lora_r = 8: no adapters are asked for",
            "line 5: learning_rate = \"fast\": a later line sets it again",
            "line 6: seed = null: no value, so nothing is taken from it",
            "line 7: disable_dropout = true: there is no dropout here",
            "line 8: fp16 = true: there is no fp16 here",
            "learning_rate = 2e-6",
        ],
    );
}

#[test]
fn adapters_are_peft_s_by_their_own_defaults() {
    let yaml = "stage: rm\nfinetuning_type: lora\nlora_rank: 4\nlora_target: q_proj, v_proj\ncutoff_len: 700\ntemplate: llama3\n";
    let text = course("a.yaml", yaml, 1, None);
    assert_says(
        &text,
        &[
            "rank = 4",
            "alpha = 8.0",
            "targets = [\"q_proj\", \"v_proj\"]",
            "max_length = 700",
            "learning_rate = 5e-5",
            "line 6: template = \"llama3\":",
        ],
    );
    let unreadable = course("a.py", "RewardConfig(bf16=True, learning_rate=LR, max_length=2**9)", 1, None);
    assert_says(&unreadable, &["learning_rate in a.py is not readable", "max_length in a.py is not readable"]);
    let script = "RewardConfig(bf16=True)\nLoraConfig(r=2, target_modules=['q_proj'], task_type=TaskType.SEQ_CLS)";
    let text = course("a.py", script, 1, None);
    assert_says(
        &text,
        &[
            "rank = 2",
            "alpha = 8.0",
            "targets = [\"q_proj\"]",
            "dtype = \"bf16\"",
            "line 2: LoraConfig(task_type=TaskType.SEQ_CLS): no literal: scripts are not run",
        ],
    );
    let mut from = translation("a.py", "RewardConfig(x=1)\nLoraConfig(target_modules=r'.*(q|v)_proj')", 1);
    let model = look::ModelFacts {
        architecture: None,
        tokenizer: None,
        chat: true,
        language_model_head: true,
        adapter: None,
        about: Vec::new(),
    };
    let error = method::translate(&mut from, &mut Draft::default(), &model).unwrap_err();
    assert!(error.message.contains("expected names of projections"), "{error}");
}

/// Path and rows of every source.
fn listed(sources: &[Chosen]) -> Vec<(String, String)> {
    sources.iter().map(|one| (one.source.path.display().to_string(), one.source.rows.to_string())).collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(path, rows)| ((*path).to_owned(), (*rows).to_owned())).collect()
}

#[test]
fn data_is_found_as_the_file_means_it() {
    let yaml = "model_name_or_path: org/model\nmodel_revision: v1\ndataset_name: org/pairs\ndataset_config: en\n\
                dataset_train_split: train[:10%]+extra\neval_strategy: steps\n";
    let mut from = translation("a.yaml", yaml, 1);
    assert_eq!((from.program, from.trains), (Program::Trl, Trains::Reward));
    assert_eq!(from.model().unwrap().value, PathBuf::from("hf://org/model@v1"));
    let splits = from.splits(false).unwrap();
    assert_eq!(listed(&splits.train), owned(&[("hf://org/pairs/en/train", ":10%"), ("hf://org/pairs/en/extra", ":")]));
    assert_eq!(listed(&splits.dev), owned(&[("hf://org/pairs/en/test", ":")]));

    let mixture = "datasets:\n  - path: json\n    data_files: a.jsonl\n  - path: org/b\n    split: test[5:9]\ntest_split_size: 0.1\n";
    let splits = translation("a.yaml", mixture, 1).splits(false).unwrap();
    assert_eq!(
        (listed(&splits.train), listed(&splits.dev)),
        (owned(&[("a.jsonl", ":")]), owned(&[("hf://org/b/test", "5:9")]))
    );

    let script = "RewardConfig(x=1)\ntrain = load_dataset('json', data_files={'train': ['a.jsonl', 'b.jsonl']}, split='train')\n";
    let splits = translation("a.py", script, 1).splits(false).unwrap();
    assert_eq!(listed(&splits.train), owned(&[("a.jsonl", ":"), ("b.jsonl", ":")]));
    assert!(
        translation("a.yaml", "beta: 1\ndatasets:\n- path: org/b\n  split: train[-5:]\n", 1).splits(false).is_err()
    );
}

#[test]
fn llama_factory_s_data_is_what_its_dataset_info_says() {
    let folder = tempfile::tempdir().unwrap();
    let info = r#"{"mine": {"file_name": "mine.json", "ranking": true}, "hub": {"hf_hub_url": "org/pairs", "num_samples": 9}}"#;
    std::fs::write(folder.path().join("dataset_info.json"), info).unwrap();
    let yaml = |dataset: &str| {
        let folder = folder.path().display();
        format!("stage: rm\ndataset: {dataset}\ndataset_dir: {folder}\nval_size: 0.1\n")
    };
    let splits = translation("a.yaml", &yaml("mine"), 1).splits(false).unwrap();
    let path = folder.path().join("mine.json").display().to_string();
    assert_eq!(listed(&splits.train), owned(&[(&path, ":90%")]));
    assert_eq!(listed(&splits.dev), owned(&[(&path, "90%:")]));
    let splits = translation("a.yaml", &yaml("hub"), 1).splits(false).unwrap();
    assert_eq!((listed(&splits.train), splits.dev.len()), (owned(&[("hf://org/pairs/train", ":9")]), 0));
    let error = translation("a.yaml", &yaml("other"), 1).splits(false).unwrap_err();
    assert!(error.message.contains("has no \"other\"") && error.hint.unwrap().contains("--train"));
}

#[test]
fn llama_factory_means_its_own_defaults_where_it_is_silent() {
    let yaml = "stage: dpo\nfinetuning_type: full\npref_loss: simpo\ndisable_shuffling: true\n\
                disable_gradient_checkpointing: true\nuse_galore: false\ngalore_rank: 16\nmoe_aux_loss_coef: 0.01\n";
    let text = course("a.yaml", yaml, 1, None);
    assert_says(
        &text,
        &[
            "policy = \"simpo\"",
            "simpo_gamma = 0.5",
            "shuffle = false",
            "activation_checkpointing = false",
            "line 7: galore_rank = 16: AdamW is the optimizer here",
            "line 8: moe_aux_loss_coef = 0.01: another loss than loss.router_balance",
        ],
    );
    let said = course("a.yaml", &yaml.replace("simpo\n", "simpo\nsimpo_gamma: 1.5\n"), 1, None);
    assert_says(&said, &["simpo_gamma = 1.5"]);
    // Control: other losses have none.
    assert!(!course("a.yaml", &yaml.replace("simpo", "sigmoid"), 1, None).contains("simpo_gamma ="));
}
