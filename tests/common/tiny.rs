//! A workspace with a model of a few narrow blocks, its tokenizer, pairs and a config: whole runs in under a second.
//!
//! Not here: the expected results of the runs.

use crate::job;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Rows of the model's embedding, V.
pub const VOCABULARY: usize = 97;
/// Letters and signs have ids from here on; special tokens are below, as the model's config.json has them.
const FIRST_LETTER: usize = 8;
const LETTERS: &str = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!";
const SPECIAL: [&str; FIRST_LETTER] =
    ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|spare|>", "<|other|>"];
const TEMPLATE: &str = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Rows of the training sources: with weights 2 and 0.5 an epoch has 5 + 5 + 3 = 13 pairs, so that batches of 6 leave
/// one of a single pair.
const PLAIN_ROWS: usize = 5;
const OTHER_ROWS: usize = 6;

/// `--config run.toml` trains 6 steps of two such epochs.
const CONFIG: &str = r#"
[model]
path = "model"
dtype = "f32"
[data]
train = [{ path = "plain.jsonl", weight = 2.0 }, { path = "other.jsonl", weight = 0.5, domain = "others" }]
dev = [{ path = "dev.jsonl" }]
test = [{ path = "test.jsonl" }]
max_length = 28
max_prompt_length = 16
cache_dir = "cache"
[train]
epochs = 2
pairs_per_step = 6
tokens_per_micro_batch = 90
learning_rate = 1e-3
[parallel]
threads = 1
[eval]
every = 2
[checkpoint]
every = 3
keep = 5
[output]
dir = "run"
"#;

const PROGRAM: &str = env!("CARGO_BIN_EXE_haf-dist");

/// Every job must be over within this time; most take a second.
const LIMIT: Duration = Duration::from_secs(120);

/// A folder that goes with its value.
pub struct Workspace {
    folder: tempfile::TempDir,
    /// Where Open MPI keeps what its processes share: jobs that start and end at once trip over a common folder.
    session: tempfile::TempDir,
}

/// How a job ended.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Workspace {
    /// The model, the tokenizer, the data and the config.
    pub fn new() -> Self {
        Self::of("llama-tied")
    }

    /// As [`new`](Self::new), with a model of tests/golden/ that has [`VOCABULARY`] tokens.
    pub fn of(model: &str) -> Self {
        let workspace = Self { folder: tempfile::tempdir().unwrap(), session: tempfile::tempdir().unwrap() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model);
        fs::create_dir(workspace.path("model")).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(golden.join(name), workspace.path("model").join(name)).unwrap();
        }
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE});
        workspace.write("model/tokenizer_config.json", &config.to_string());
        workspace.write("model/tokenizer.json", &tokenizer().to_string());
        workspace.write("run.toml", CONFIG);
        workspace.write("plain.jsonl", &rows(0, PLAIN_ROWS));
        workspace.write("other.jsonl", &rows(20, OTHER_ROWS));
        workspace.write("dev.jsonl", &rows(40, 5));
        workspace.write("test.jsonl", &rows(60, 7));
        workspace
    }

    /// A workspace whose run of 6 steps on so many ranks is over.
    pub fn trained(ranks: usize) -> Self {
        let workspace = Self::new();
        workspace.train(ranks, &[]).succeeded();
        workspace
    }

    /// A path inside.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file inside.
    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// The bytes of a file inside.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The objects of a JSONL file inside.
    pub fn json_lines(&self, name: &str) -> Vec<Value> {
        parse_lines(&String::from_utf8(self.read(name)).unwrap())
    }

    /// The steps of `run/metrics.jsonl`, in its order.
    pub fn steps(&self, run: &str) -> Vec<Value> {
        let lines = self.json_lines(&format!("{run}/metrics.jsonl"));
        lines.into_iter().filter(|line| line.get("eval").is_none()).collect()
    }

    /// The loss of every step of a run.
    pub fn losses(&self, run: &str) -> Vec<f64> {
        self.steps(run).iter().map(|step| step["loss"].as_f64().expect("a finite loss")).collect()
    }

    /// Every file with its content, and every folder, but for the caches.
    pub fn content(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut content = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.ends_with("cache") || path.ends_with(".cache") {
                    continue;
                }
                let bytes = match fs::symlink_metadata(&path).unwrap().file_type() {
                    kind if kind.is_dir() => None,
                    // A link is what it leads to, which may be nothing.
                    kind if kind.is_symlink() => {
                        Some(fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
                    }
                    _ => Some(fs::read(&path).unwrap()),
                };
                if bytes.is_none() {
                    folders.push(path.clone());
                }
                content.insert(path, bytes);
            }
        }
        content
    }

    /// Starts the program here, under mpirun for 2 or more ranks; its output goes to files named `log`.
    pub fn start(&self, ranks: usize, log: &str, arguments: &[&str]) -> Child {
        // Outside the folder whose content is compared.
        let file = |kind: &str| fs::File::create(self.log(log, kind)).unwrap();
        let mut command = self.command(ranks, arguments);
        command.stdout(file("out")).stderr(file("err")).spawn().expect("mpirun of Open MPI is installed")
    }

    /// The program as it would be started here.
    pub fn command(&self, ranks: usize, arguments: &[&str]) -> Command {
        let program = Path::new(PROGRAM);
        let mut command = if ranks > 1 { job::mpirun(ranks, program) } else { Command::new(program) };
        command.args(arguments);
        self.at_home(command)
    }

    /// Two ranks that are told different things, the second in the folder of `other`.
    pub fn unlike(&self, first: &[&str], other: &Self, second: &[&str]) -> Command {
        let mut command = job::mpirun(1, Path::new(PROGRAM));
        command.args(first).args([":", "-n", "1", "-wdir"]).arg(other.folder.path()).arg(PROGRAM).args(second);
        self.at_home(command)
    }

    fn at_home(&self, mut command: Command) -> Command {
        command
            .current_dir(self.folder.path())
            .env("OMP_NUM_THREADS", "1")
            // No test asks the network.
            .env("HF_HUB_CACHE", "hub")
            .env("HF_HUB_OFFLINE", "1")
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("OMPI_MCA_orte_tmpdir_base", self.session.path())
            .env_remove("HAF_COLUMNS")
            .env_remove("HAF_LOG")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// What a started job has written to `out` or `err` so far.
    pub fn log(&self, log: &str, kind: &str) -> PathBuf {
        let name = self.folder.path().file_name().unwrap().to_string_lossy().into_owned();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        folder.join(format!("{name}-{log}.{kind}"))
    }

    /// Runs the program to its end.
    pub fn run(&self, ranks: usize, arguments: &[&str]) -> Outcome {
        self.finish(self.command(ranks, arguments))
    }

    /// Runs a command to its end.
    pub fn finish(&self, mut command: Command) -> Outcome {
        let started = Instant::now();
        let log = format!("{:?}", std::thread::current().id()).replace(|letter: char| !letter.is_ascii_digit(), "");
        let file = |kind: &str| fs::File::create(self.log(&log, kind)).unwrap();
        let job = command.stdout(file("out")).stderr(file("err")).spawn().expect("mpirun of Open MPI is installed");
        let ended = job::wait(job, LIMIT);
        let text = |kind| {
            let path = self.log(&log, kind);
            let bytes = fs::read(&path).unwrap();
            fs::remove_file(path).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (text("out"), text("err"));
        let code = ended.unwrap_or_else(|| panic!("{command:?} was not over in time:\n{stdout}{stderr}"));
        Outcome { code, stdout, stderr, took: started.elapsed() }
    }

    /// Trains with `run.toml` and these `--set` overrides; an override that starts with `--` is a flag.
    pub fn train(&self, ranks: usize, set: &[&str]) -> Outcome {
        self.run(ranks, &with_config(&[], set))
    }

    /// As [`train`](Self::train), for `prepare`.
    pub fn prepare(&self, ranks: usize, set: &[&str]) -> Outcome {
        self.run(ranks, &with_config(&["prepare"], set))
    }
}

impl Outcome {
    /// Panics with all that was printed unless the exit code is 0.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// Lines of stderr that start with `error:`, or with a space that Open MPI 5 leaves before it.
    pub fn errors(&self) -> Vec<&str> {
        self.stderr.lines().map(str::trim_start).filter(|line| line.starts_with("error:")).collect()
    }
}

/// `COMMAND --config run.toml`, then the overrides and flags.
pub fn with_config<'a>(command: &[&'a str], set: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = [command, &["--config", "run.toml"]].concat();
    for &item in set {
        arguments.extend(if item.starts_with("--") { vec![item] } else { vec!["--set", item] });
    }
    arguments
}

/// The objects of JSONL text.
pub fn parse_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// One token a letter, with ids below [`VOCABULARY`].
pub fn tokenizer() -> Value {
    let special = SPECIAL.iter().map(|text| text.to_string());
    let texts: Vec<String> = special.chain(LETTERS.chars().map(String::from)).collect();
    let vocabulary: Map<String, Value> = texts.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let added = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": SPECIAL.iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    })
}

/// Pairs of several lengths, from number `first` on; two share a prompt, as rows about one question do.
pub fn rows(first: usize, count: usize) -> String {
    const WORDS: [&str; 7] = ["yes", "no", "a cat", "the dog", "42", "maybe so", "I do not know"];
    let row = |number: usize| {
        // Never the same words: answers that are cut must still differ.
        let chosen = 3 * number + 1;
        let [chosen, rejected] = [chosen, chosen + 1 + number % 5].map(|word| WORDS[word % WORDS.len()]);
        let row = json!({"prompt": format!("What is {}?", "x".repeat(number / 2 % 9)),
                         "chosen": format!("{chosen} {number}"), "rejected": format!("{rejected}.")});
        row.to_string() + "\n"
    };
    (first..first + count).map(row).collect()
}
