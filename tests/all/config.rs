//! Valid config files, and the errors of wrong ones.

use haf_dist::config::*;
use std::path::{Path, PathBuf};

const MINIMAL: &str = r#"[model]
path = "model"
[data]
train = [{ path = "data/pairs.jsonl.gz" }]
[output]
dir = "runs/a"
"#;

fn load(text: &str, set: &[&str]) -> haf_dist::error::Result<Config> {
    let set: Vec<String> = set.iter().map(|set| set.to_string()).collect();
    Config::parse("a.toml", text, &set)
}

fn with(set: &[&str]) -> haf_dist::error::Result<Config> {
    load(MINIMAL, set)
}

/// The error's whole text, having made sure that it is the user's to mend and says how.
fn refusal(text: &str, set: &[&str]) -> String {
    let error = load(text, set).expect_err("this config should be refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.hint.is_some(), "no hint: {error}");
    error.to_string()
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = with(&[]).unwrap();
    assert_eq!(config.train.epochs, Some(1), "the length of the run is filled in");
    assert_eq!(config.data.train[0].domain.as_deref(), Some("pairs"), "the domain is the file's stem");
    assert_eq!(config.loss, LossConfig::default());
}

#[test]
fn the_reference_file_shows_every_key_with_its_default() {
    let text = std::fs::read_to_string("configs/reference.toml").unwrap();
    let reference = load(&text, &[]).unwrap();
    let mut expected = load(MINIMAL, &[]).unwrap();
    // These have no default, or one that follows from the path.
    expected.model.path = reference.model.path.clone();
    expected.output.dir = reference.output.dir.clone();
    expected.data.train[0].path = reference.data.train[0].path.clone();
    expected.data.train[0].domain = Some("train".into());
    assert_eq!(reference, expected);

    let table: toml::Table = text.parse().unwrap();
    for key in known_keys() {
        // Excluded by epochs, hence in a comment; sources of dev and test have the shape of those of train.
        if key == "train.steps" || key.starts_with("data.dev") || key.starts_with("data.test") {
            continue;
        }
        // Without the table every weight is trained.
        if let Some(name) = key.strip_prefix("lora.") {
            let name = name.trim_end_matches(".0");
            assert!(text.contains(&format!("\n# {name} = ")), "configs/reference.toml does not show `{key}`");
            continue;
        }
        let mut node = Some(toml::Value::Table(table.clone()));
        for name in key.split('.') {
            node = node.and_then(|node| match name.parse::<usize>() {
                Ok(index) => node.get(index).cloned(),
                Err(_) => node.get(name).cloned(),
            });
        }
        assert!(node.is_some(), "configs/reference.toml does not show `{key}`");
    }
    for key in ["\n# steps = ", "\ndev = []", "\ntest = []"] {
        assert!(text.contains(key), "configs/reference.toml does not show {key:?}");
    }
}

#[test]
fn known_keys_reach_into_sources_and_optional_keys() {
    let keys = known_keys();
    for key in ["data.train.0.domain", "train.epochs", "train.steps", "loss.alternate_every", "data.cache_dir"] {
        assert!(keys.iter().any(|known| known == key), "{key} is missing from {keys:?}");
    }
}

#[test]
fn the_safety_file_is_the_papers_recipe() {
    let config = Config::load(Path::new("configs/safety.toml"), &[]).unwrap();
    assert_eq!(config.data.train[0].format, Format::Safer);
    assert_eq!((config.train.learning_rate, config.train.pairs_per_step, config.train.epochs), (1e-5, 16, Some(2)));
    assert!(config.loss.needs_reference());
}

/// Every TOML file under configs/.
fn shipped() -> Vec<PathBuf> {
    let (mut found, mut folders) = (vec![], vec![PathBuf::from("configs")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "toml" => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_file_under_configs_loads_and_tests_on_no_row_that_it_trains_on() {
    for file in shipped() {
        let config = Config::load(&file, &[]).unwrap_or_else(|error| panic!("{error}"));
        let DataConfig { train, dev, test, .. } = &config.data;
        let splits = [("train", train), ("dev", dev), ("test", test)];
        for (index, (name, one)) in splits.iter().enumerate() {
            for (other_name, other) in &splits[index + 1..] {
                for (one, other) in one.iter().flat_map(|one| other.iter().map(move |other| (one, other))) {
                    let apart = one.path != other.path
                        || [1, 50, 33_000].iter().all(|&rows| {
                            let (one, other) = (one.rows.of(rows), other.rows.of(rows));
                            one.end <= other.start || other.end <= one.start
                        });
                    assert!(apart, "{}: {name} and {other_name} share rows of {}", file.display(), one.path.display());
                }
            }
        }
    }
}

#[test]
fn the_papers_files_are_its_recipe() {
    let files: Vec<PathBuf> = shipped().into_iter().filter(|file| file.starts_with("configs/paper")).collect();
    assert!(!files.is_empty());
    for file in files {
        let config = Config::load(&file, &[]).unwrap();
        let (loss, train, data) = (&config.loss, &config.train, &config.data);
        assert_eq!((loss.alpha, loss.beta, train.pairs_per_step, train.adam_epsilon), (0.2, 0.1, 16, 1e-5), "{file:?}");
        assert_eq!((data.max_length, data.max_prompt_length, train.warmup_steps), (512, 128, 0), "{file:?}");
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        assert_eq!(config.output.dir, Path::new("runs/paper").join(&name), "runs of two files must not meet");
        let (rate, steps) = if name.starts_with("phi-2-") { (1e-5, None) } else { (3e-5, Some(3200)) };
        assert_eq!((train.learning_rate, train.steps), (rate, steps), "{name}");
        assert!(!data.dev.is_empty() && !data.test.is_empty(), "{name}");
    }
}

#[test]
fn the_resolved_text_loads_to_an_equal_config() {
    for set in [&[][..], &["train.steps=7", "loss.alpha=0.30000000000000004", "data.test.0.path=a \"b\".jsonl"]] {
        let config = with(set).unwrap();
        let text = config.resolved_toml().unwrap();
        assert_eq!(load(&text, &[]).unwrap(), config, "{text}");
        let shown: toml::Table = text.parse().unwrap();
        assert!(shown["loss"].get("simpo_gamma").is_some(), "defaults are written out");
    }
}

#[test]
fn set_takes_toml_words_and_array_elements() {
    let text = MINIMAL.replace("[output]", "[train]\nepochs = 3\n[output]");
    let config = load(
        &text,
        &[
            "loss.policy=simpo",
            "loss.alpha = 1",
            "train.learning_rate=3e-5",
            "data.shuffle=false",
            "output.dir=2024",
            "model.path=\"a b\"",
            "data.train.0.path=other.jsonl",
            "data.train.1.path=more.jsonl",
            "data.dev=[{ path = 'dev.jsonl', format = 'hh' }]",
            "train.steps=5",
            "loss.beta=0.5",
            "loss.beta=0.25",
        ],
    )
    .unwrap();
    assert_eq!(config.loss.policy, PolicyLoss::Simpo);
    assert_eq!((config.loss.alpha, config.train.learning_rate, config.data.shuffle), (1.0, 3e-5, false));
    assert_eq!(config.output.dir, Path::new("2024"), "a key that takes text takes it as it stands");
    assert_eq!(config.model.path, Path::new("a b"));
    let paths: Vec<_> = config.data.train.iter().map(|source| source.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["other.jsonl", "more.jsonl"], "the number after the last adds a source");
    assert_eq!(config.data.dev[0].format, Format::Hh);
    assert_eq!((config.train.epochs, config.train.steps), (None, Some(5)), "steps take back the file's epochs");
    assert_eq!(config.loss.beta, 0.25, "the last one wins");
}

#[test]
fn a_wrong_set_is_refused_with_the_reason() {
    for (set, message) in [
        ("loss.alhpa=1", "--set loss.alhpa=1: unknown key `loss.alhpa`; expected one of alpha"),
        ("loss.alhpa=1", "hint: did you mean `loss.alpha`?"),
        ("loss.alfa=1", "hint: did you mean `loss.alpha`?"),
        ("loss.bite=1", "hint: did you mean `loss.beta`?"),
        ("alpha=1", "hint: did you mean `loss.alpha`?"),
        ("data.train.3.pth=x", "hint: did you mean `data.train.3.path`?"),
        ("data.train.path=x", "expected a number from 0 after `data.train`"),
        ("data.train.3.path=x", "--set data.train.3.path=x: the list has 1 entry (number 0)"),
        ("loss.alpha", "there is no `=`; expected table.key=value"),
        ("loss.alpha=", "there is nothing after the `=`"),
        ("loss.alpha=much", "--set loss.alpha=much: `loss.alpha`: invalid type: string \"much\"; expected a number"),
        ("loss.alpha=-1", "--set loss.alpha=-1: `loss.alpha` = -1; expected a finite number 0 or above"),
        ("data.train=[{", "the value is not TOML"),
        ("loss={ alhpa = 1 }", "--set loss={ alhpa = 1 }: unknown key `loss.alhpa`"),
        ("=1", "a setting has the form KEY=VALUE"),
    ] {
        let told = refusal(MINIMAL, &[set]);
        assert!(told.contains(message), "--set {set}\nexpected {message:?} in:\n{told}");
    }
}

#[test]
fn a_wrong_file_is_refused_with_line_key_and_nearest_key() {
    for (from, to, message) in [
        ("[output]", "[loss]\nalhpa = 1\n[output]", "a.toml:6: unknown key `loss.alhpa`; expected one of"),
        ("[output]", "[loss]\nalhpa = 1\n[output]", "did you mean `loss.alpha`?"),
        ("[output]", "[train]\nbeta = 1\n[output]", "did you mean `loss.beta`?"),
        ("[output]", "[los]\n[output]", "a.toml:5: unknown table or key `los`"),
        ("[output]", "[los]\n[output]", "did you mean `loss`?"),
        ("{ path", "{ pth = 1, path", "a.toml:4: unknown key `data.train.0.pth`"),
        (
            "[output]",
            "[loss]\npolicy = \"dop\"\n[output]",
            "a.toml:6: `loss.policy`: unknown value `dop`; expected one of",
        ),
        ("[output]", "[loss]\npolicy = \"dop\"\n[output]", "did you mean \"dpo\"?"),
        (
            "[output]",
            "[train]\nwarmup_steps = -1\n[output]",
            "a.toml:6: `train.warmup_steps`: invalid value: integer `-1`",
        ),
        ("[output]", "[train]\nwarmup_steps = 1.5\n[output]", "expected a whole number, 0 or above"),
        ("[output]", "[data.x]\n[output]", "unknown key `data.x`"),
        (
            "[{ path = \"data/pairs.jsonl.gz\" }]",
            "3",
            "a.toml:4: `data.train`: invalid type: integer `3`; expected an array",
        ),
        ("[{ path = \"data/pairs.jsonl.gz\" }]", "[]", "a.toml:4: `data.train` is empty"),
        ("[{ path = \"data/pairs.jsonl.gz\" }]", "[{}]", "a.toml:4: `data.train.0.path` is missing"),
        ("[output]", "[zzzzzzzz]\n[output]", "hint: `haf-dist init --reference` shows every key with its default"),
        ("path = \"model\"\n", "", "a.toml:1: `model.path` is missing; it has no default"),
        ("[model]\npath = \"model\"\n", "", "a.toml: `model` is missing"),
        ("dir =", "dir", "a.toml:6: not TOML"),
        ("\"model\"", "\"\"", "a.toml:2: `model.path` is empty"),
    ] {
        let told = refusal(&MINIMAL.replacen(from, to, 1), &[]);
        assert!(told.contains(message), "{from:?} -> {to:?}\nexpected {message:?} in:\n{told}");
    }
}

#[test]
fn values_out_of_range_are_refused_and_those_at_the_edge_taken() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("train.epochs", &["0"], &["1"]),
        ("train.steps", &["0"], &["1"]),
        ("train.pairs_per_step", &["0"], &["1"]),
        ("train.tokens_per_micro_batch", &["0"], &["1"]),
        ("train.learning_rate", &["0", "-1", "inf", "nan"], &["1e-9"]),
        ("train.head_learning_rate", &["-1", "nan"], &["0", "1"]),
        ("train.weight_decay", &["-0.1", "inf"], &["0", "0.1"]),
        ("train.adam_beta1", &["1", "-0.1", "nan"], &["0", "0.99"]),
        ("train.adam_beta2", &["1", "-0.1", "nan"], &["0", "0.99"]),
        ("train.adam_epsilon", &["0", "nan"], &["1e-8"]),
        ("train.clip_norm", &["-1", "inf"], &["0"]),
        ("loss.alpha", &["-0.1", "inf", "nan"], &["0", "2"]),
        ("loss.reward_weight", &["-0.1", "inf", "nan"], &["0", "2"]),
        ("loss.beta", &["0", "-1", "inf"], &["1e-3"]),
        ("loss.label_smoothing", &["0.5", "-0.1", "nan"], &["0", "0.499"]),
        ("loss.centering", &["-1", "nan"], &["0", "0.01"]),
        ("loss.router_balance", &["-1", "nan"], &["0", "1e-4"]),
        ("data.max_length", &["7"], &["8", "385"]),
        ("data.max_prompt_length", &["0", "512"], &["1", "511"]),
        ("data.train.0.weight", &["0", "-1", "inf"], &["0.5", "3"]),
        ("checkpoint.keep", &["0"], &["1"]),
        ("parallel.threads", &["5000"], &["0", "8"]),
        ("parallel.timeout_seconds", &["0", "1000001"], &["1", "3600"]),
    ];
    for (key, bad, good) in cases {
        for value in *bad {
            let told = refusal(MINIMAL, &[&format!("{key}={value}")]);
            assert!(told.contains('`') && told.contains("expected"), "{key}={value}: {told}");
        }
        for value in *good {
            with(&[&format!("{key}={value}")]).unwrap_or_else(|error| panic!("{key}={value}: {error}"));
        }
    }
}

#[test]
fn a_weight_means_nothing_to_dev_and_test() {
    for list in ["dev", "test"] {
        let weighted = |weight: &str| format!("data.{list}=[{{ path = 'pairs.jsonl', weight = {weight} }}]");
        let told = refusal(MINIMAL, &[&weighted("0.5")]);
        assert!(told.contains(&format!("`data.{list}.0.weight` = 0.5, but every {list} pair is taken once")), "{told}");
        with(&[&weighted("1")]).unwrap();
    }
}

#[test]
fn a_shorter_sequence_leaves_its_answer_room_unless_the_prompt_is_named() {
    let lengths = |set: &[&str]| {
        let data = with(set).unwrap().data;
        (data.max_length, data.max_prompt_length)
    };
    assert_eq!(lengths(&[]), (512, 384));
    assert_eq!(lengths(&["data.max_length=256"]), (256, 192));
    assert_eq!(lengths(&["data.max_length=2048"]), (2048, 384));
    assert_eq!(lengths(&["data.max_length=256", "data.max_prompt_length=10"]), (256, 10));
    assert!(refusal(MINIMAL, &["data.max_length=256", "data.max_prompt_length=256"]).contains("leaves no room"));
}

#[test]
fn no_domain_has_the_name_of_the_total() {
    for set in ["data.train.0.domain=all", "data.train.0.path=data/all.jsonl.gz"] {
        let told = refusal(MINIMAL, &[set]);
        assert!(told.contains("`data.train.0.domain` = \"all\" is the name of the total"), "{told}");
    }
    with(&["data.train.0.path=data/all.jsonl.gz", "data.train.0.domain=everything"]).unwrap();
    assert!(refusal(MINIMAL, &["data.train.0.domain=\"\""]).contains("`data.train.0.domain` is empty"));
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let cases: &[(&[&str], &str)] = &[
        (&["train.epochs=1", "train.steps=1"], "`train.steps` and `train.epochs` are both set"),
        (&["loss.policy=hinge", "loss.label_smoothing=0.1"], "`loss.label_smoothing` has no meaning"),
        (&["loss.policy=ipo", "loss.label_smoothing=0.1"], "`loss.label_smoothing` has no meaning"),
        (&["loss.policy=sft", "loss.objective=policy", "loss.label_smoothing=0.1"], "`loss.label_smoothing`"),
        (&["loss.alternate_every=2", "loss.objective=reward"], "`loss.alternate_every` needs two losses"),
        (&["loss.alternate_every=2", "loss.objective=policy"], "`loss.alternate_every` needs two losses"),
        (&["loss.alternate_every=2", "loss.alpha=0"], "`loss.alternate_every` needs two losses"),
        (&["loss.simpo_gamma=1"], "`loss.simpo_gamma` belongs to"),
        (&["loss.prior=normal", "loss.policy=hinge"], "`loss.prior` is for Bradley-Terry and dpo"),
        (&["loss.prior_degrees=3"], "`loss.prior_degrees` belongs to loss.prior = \"student\""),
        (&["loss.prior=student", "loss.prior_degrees=0.5"], "`loss.prior_degrees` = 0.5; expected"),
        (&["loss.centering=0.1", "loss.objective=policy"], "`loss.centering` applies to rewards"),
        (&["loss.alpha=0", "loss.reward_weight=0"], "`loss.alpha` leaves nothing to minimize"),
        (&["loss.objective=reward", "loss.reward_weight=0"], "`loss.reward_weight` leaves nothing"),
        (&["train.steps=5", "train.warmup_steps=6"], "`train.warmup_steps` = 6 is longer"),
    ];
    for (set, message) in cases {
        let told = refusal(MINIMAL, set);
        assert!(told.contains(message), "{set:?}: {told}");
    }
    let both = MINIMAL.replace("[output]", "[train]\nepochs = 1\nsteps = 2\n[output]");
    assert!(refusal(&both, &[]).starts_with("a.toml:7: `train.steps` and"));

    let allowed: &[&[&str]] = &[
        &["loss.policy=simpo", "loss.label_smoothing=0.1", "loss.simpo_gamma=1"],
        &["loss.policy=hinge", "loss.objective=reward", "loss.label_smoothing=0.1"],
        &["loss.alternate_every=2"],
        &["loss.prior=student", "loss.prior_degrees=3", "loss.label_smoothing=0.1"],
        &["loss.prior=laplace", "loss.objective=reward", "loss.policy=ipo"],
    ];
    for set in allowed {
        with(set).unwrap_or_else(|error| panic!("{set:?}: {error}"));
    }
}

#[test]
fn the_objective_decides_which_losses_count() {
    let loss = |set: &[&str]| with(set).unwrap().loss;
    let facts = |loss: &LossConfig| {
        (loss.effective_alpha(), loss.effective_reward_weight(), loss.needs_policy(), loss.needs_reference())
    };
    assert_eq!(facts(&loss(&[])), (0.2, 1.0, true, true));
    assert_eq!(facts(&loss(&["loss.objective=reward"])), (0.0, 1.0, false, false));
    assert_eq!(facts(&loss(&["loss.objective=policy"])), (0.2, 0.0, true, true));
    assert_eq!(facts(&loss(&["loss.alpha=0"])), (0.0, 1.0, false, false));
    for (policy, reference) in [("dpo", true), ("hinge", true), ("ipo", true), ("simpo", false), ("sft", false)] {
        assert_eq!(loss(&[&format!("loss.policy={policy}")]).needs_reference(), reference, "{policy}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("no/such.toml"), &[]).unwrap_err();
    assert!(error.message.starts_with("cannot read the config file no/such.toml"), "{error}");
    assert_eq!(error.exit_code(), 2);

    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Config::load(folder.path(), &[]).unwrap_err().exit_code(), 2, "a folder is no file");
    let path = folder.path().join("latin1.toml");
    std::fs::write(&path, b"[model]\n# caf\xe9\n").unwrap();
    let error = Config::load(&path, &[]).unwrap_err();
    assert!(error.message.ends_with("latin1.toml:2: not UTF-8 text; expected a TOML file"), "{error}");
    assert!(error.hint.is_some());
}
