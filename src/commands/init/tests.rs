//! Promise: every setting of another program's config is taken over, converted with its arithmetic, or listed; model and data are
//! those that it means.
//!
//! Not here: whole configs for existing files (`tests/all/runs/init.rs`).

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
    method::translate(&mut from, &mut draft, &nothing_known()).unwrap();
    from.finish(&mut draft);
    draft.render(Some(name))
}

/// A model that could not be looked at.
fn nothing_known() -> ModelFacts {
    ModelFacts {
        architecture: None,
        tokenizer: None,
        chat: true,
        language_model_head: true,
        adapter: None,
        about: Vec::new(),
    }
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
            // TRL's defaults for keys that the file does not have.
            "epochs = 3",
            "learning_rate = 1e-4",
            "adam_epsilon = 1e-8",
            "max_length = 1024",
            "truncation = \"drop\"",
            "reward_at = \"end\"",
        ],
    );
    assert_says(
        &course("a.yaml", yaml, 1, None),
        &["pairs_per_step = 32", "the file does not say how many there were"],
    );
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
            "alpha = 1.0",
            "schedule = \"cosine\"",
            "every = 50",
            "every = 100",
            "learning_rate = 1e-6",
        ],
    );
    let unknown = course("a.yaml", yaml, 1, None);
    assert!(!unknown.contains("warmup_steps ="), "{unknown}");
    assert_says(&unknown, &["line 4: warmup_ratio = 0.1: the number of steps is not known here"]);
}

#[test]
fn a_longest_prompt_that_leaves_no_answer_is_listed() {
    let of =
        |prompt: usize| course("a.yaml", &format!("beta: 1\nmax_length: 100\nmax_prompt_length: {prompt}\n"), 1, None);
    assert_says(&of(60), &["max_prompt_length = 60"]);
    assert_says(&of(100), &["line 3: max_prompt_length = 100: it would truncate no prompt"]);
    assert!(!of(100).contains("\nmax_prompt_length"));
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
            "line 3: frobnicate = [1,2]: not a key that is known here: check whether it matters",
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
            "line 2: LoraConfig(task_type=TaskType.SEQ_CLS): not a literal: scripts are not run",
        ],
    );
    let mut from = translation("a.py", "RewardConfig(x=1)\nLoraConfig(target_modules=r'.*(q|v)_proj')", 1);
    let error = method::translate(&mut from, &mut Draft::default(), &nothing_known()).unwrap_err();
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
    let splits = from.splits(false, false).unwrap();
    assert_eq!(listed(&splits.train), owned(&[("hf://org/pairs/en/train", ":10%"), ("hf://org/pairs/en/extra", ":")]));
    assert_eq!(listed(&splits.dev), owned(&[("hf://org/pairs/en/test", ":")]));

    let mixture = "datasets:\n  - path: json\n    data_files: a.jsonl\n  - path: org/b\n    split: test[5:9]\ntest_split_size: 0.1\n";
    let splits = translation("a.yaml", mixture, 1).splits(false, false).unwrap();
    assert_eq!(
        (listed(&splits.train), listed(&splits.dev)),
        (owned(&[("a.jsonl", ":")]), owned(&[("hf://org/b/test", "5:9")]))
    );

    let script = "RewardConfig(x=1)\ntrain = load_dataset('json', data_files={'train': ['a.jsonl', 'b.jsonl']}, split='train')\n";
    let splits = translation("a.py", script, 1).splits(false, false).unwrap();
    assert_eq!(listed(&splits.train), owned(&[("a.jsonl", ":"), ("b.jsonl", ":")]));
    assert!(
        translation("a.yaml", "beta: 1\ndatasets:\n- path: org/b\n  split: train[-5:]\n", 1)
            .splits(false, false)
            .is_err()
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
    let splits = translation("a.yaml", &yaml("mine"), 1).splits(false, false).unwrap();
    let path = folder.path().join("mine.json").display().to_string();
    assert_eq!(listed(&splits.train), owned(&[(&path, ":90%")]));
    assert_eq!(listed(&splits.dev), owned(&[(&path, "90%:")]));
    let splits = translation("a.yaml", &yaml("hub"), 1).splits(false, false).unwrap();
    assert_eq!((listed(&splits.train), splits.dev.len()), (owned(&[("hf://org/pairs/train", ":9")]), 0));
    let error = translation("a.yaml", &yaml("other"), 1).splits(false, false).unwrap_err();
    assert!(error.message.contains("has no \"other\"") && error.hint.unwrap().contains("--train"));
}

/// Paths of training and dev sources.
fn shown(splits: &Splits) -> (Vec<String>, Vec<String>) {
    let paths = |list: &[Chosen]| list.iter().map(|one| one.source.path.display().to_string()).collect();
    (paths(&splits.train), paths(&splits.dev))
}

/// Promise: every file that `load_dataset` would load is a source, and one that the command line replaces is listed.
#[test]
fn no_part_of_the_data_is_lost() {
    let all = "RewardConfig()\nload_dataset('json', data_files={'train': 'a.jsonl', 'test': 'b.jsonl'})\n";
    let one = all.replace("})", "}, split='train')");
    let of = |script: &str| shown(&translation("a.py", script, 1).splits(false, false).unwrap());
    assert_eq!(of(all), (vec!["a.jsonl".to_owned()], vec!["b.jsonl".to_owned()]));
    assert_eq!(of(&one), (vec!["a.jsonl".to_owned()], vec![]), "the control: the one split that was asked for");

    // Held out for dev pairs that are not used, a tenth of the training pairs would be lost.
    let mut from = translation("a.yaml", "dataset_name: a.jsonl\ntest_split_size: 0.1\n", 1);
    let splits = from.splits(false, true).unwrap();
    assert_eq!((listed(&splits.train), splits.dev.len()), (owned(&[("a.jsonl", ":")]), 0));
    let mut from = translation("a.yaml", "dataset_name: org/a\neval_strategy: steps\ndataset_test_split: dev\n", 1);
    assert_eq!(from.splits(false, true).unwrap().dev.len(), 0);
    let mut draft = Draft::default();
    from.finish(&mut draft);
    assert_says(&draft.render(Some("a.yaml")), &["line 3: dataset_test_split = \"dev\": --dev names these pairs"]);
}

/// Promise: a config is kept with the code, so no secret gets into it.
#[test]
fn secrets_are_not_copied() {
    let yaml =
        "hub_token: abcdef\nwandb_api_key: abcdef\nhub_model_id: hf_abcdef\neos_token: kept\nhub_token: abcdef\n";
    let script = "RewardConfig(hub_token='abcdef')\nload_dataset('org/a', token='abcdef')\n";
    for (name, text) in [("a.yaml", yaml), ("a.py", script)] {
        let mut from = translation(name, text, 1);
        let mut draft = Draft::default();
        from.splits(false, false).unwrap();
        from.finish(&mut draft);
        let text = draft.render(Some(name));
        assert!(text.contains("token = ...") && !text.contains("abcdef"), "{text}");
        assert_eq!(text.contains("eos_token = \"kept\""), name == "a.yaml", "the control: {text}");
    }
}

/// Promise: a training of another kind is not made into one of a reward model.
#[test]
fn trainings_of_another_kind_are_refused() {
    let read = |name: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
        foreign::read(&folder.path().join(name)).map(|foreign| foreign.trains)
    };
    for (name, text) in [
        ("a.py", "SFTConfig(max_length=3)\nLoraConfig(r=2)\n"),
        ("a.py", "GRPOTrainer('m')\n"),
        ("a.yaml", "model_name_or_path: m\nnum_generations: 8\nbeta: 0.1\n"),
        ("a.yaml", "model_name_or_path: m\ndataset_text_field: text\n"),
        ("a.yaml", "stage: kto\n"),
    ] {
        let error = read(name, text).unwrap_err();
        assert!(error.message.contains("not a training on preferences"), "{error}");
    }
    assert_eq!(read("a.py", "SFTConfig(x=1)\nRewardConfig(x=1)\n").unwrap(), Trains::Reward, "one of the two is");
    assert_eq!(read("a.yaml", "model_name_or_path: m\nlabel_smoothing: 0.1\n").unwrap(), Trains::Policy);
    assert_eq!(read("a.py", "RewardConfig()\n").unwrap(), Trains::Reward, "all of it by default");
}

/// Promise: what an editor on Windows writes is read as what is written on Linux.
#[test]
fn a_byte_order_mark_and_windows_line_ends_change_nothing() {
    for (name, text) in [
        ("a.yaml", "model_name_or_path: m\nlearning_rate: 2e-5\n"),
        ("a.py", "RewardConfig(output_dir='a\\\nb',\n  learning_rate=2e-5)\n"),
    ] {
        let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
        let read = |text: &str| course(name, text, 1, None);
        assert_eq!(read(&windows), read(text));
        assert!(read(text).contains("learning_rate = 2e-5"));
    }
}

#[test]
fn a_path_that_toml_cannot_hold_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let broken = Path::new(std::ffi::OsStr::from_bytes(b"m\xff"));
    assert!(in_toml(broken).unwrap_err().message.contains("not UTF-8"));
    assert_eq!(in_toml(Path::new("m\u{e9} \"x\"")).unwrap(), "m\u{e9} \"x\"");
}

/// Promise: a file's settings of adapters are listed if the model is an adapter, which has its own.
#[test]
fn an_adapter_keeps_its_own_settings() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "m"}"#;
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let adapter = crate::model::peft::PeftConfig::open(folder.path()).unwrap();
    let model = ModelFacts { adapter: Some((adapter, vec!["q_proj".to_owned()])), ..nothing_known() };
    let mut draft = Draft::default();
    draft.set("lora.rank", 64, "line 3: lora_r = 64");
    own::adapter(&mut draft, &model);
    assert_says(
        &draft.render(Some("a")),
        &["rank = 4", "- lora.rank = 64: model.path is an adapter, which has its own"],
    );
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
    let given = course("a.yaml", &yaml.replace("simpo\n", "simpo\nsimpo_gamma: 1.5\n"), 1, None);
    assert_says(&given, &["simpo_gamma = 1.5"]);
    // Control: other losses have none.
    assert!(!course("a.yaml", &yaml.replace("simpo", "sigmoid"), 1, None).contains("simpo_gamma ="));
}
