//! Texts: configs, those of other trainers, rows in every layout and packing, Parquet, chat templates.

use crate::bounds::{Verdict, fuzz, judged};
use crate::mutate::{Form, Seed};
use crate::tiny::Workspace;
use clap::Parser;
use flate2::Compression;
use flate2::write::GzEncoder;
use haf_dist::cli::{Arguments, Request};
use haf_dist::commands;
use haf_dist::config::{Config, Format, Source};
use haf_dist::data::formats::layout::Layout;
use haf_dist::data::formats::{LAYOUTS, read, read_for_scoring};
use haf_dist::data::template::jinja::Program;
use haf_dist::data::template::{SpecialTokens, variables};
use haf_dist::data::{Message, TemplateInputs};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

fn of_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files of a folder of the repository with that ending, in the order of their names.
fn all_of(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(of_repository(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has no .{ending}");
    paths
}

#[test]
fn configs() {
    const WORDS: &[&str] = &[
        "[",
        "]",
        "[[",
        "]]",
        "[train]",
        "[[data.train]]",
        "\"",
        "'''",
        "\"\"\"",
        "= {",
        "}",
        "=",
        ".",
        "\n",
        "#",
        "\\u0000",
        "1e9",
        "true",
        "path = ",
        "rows = \"1-\"",
        "columns = { a = \"b.c[]\" }",
        "lora.rank = 1",
        "inf",
        "1979-05-27T07:32:00Z",
        "hf://a/b@c/d",
    ];
    let of_files = all_of("configs", "toml").into_iter().map(|path| Seed::new(Form::Text, fs::read(path).unwrap()));
    let small = Seed::new(Form::Text, "model.path = 'm'\ndata.train = [{ path = 't' }]\noutput.dir = 'o'\n");
    let seeds: Vec<_> = of_files.chain([small]).map(|seed| seed.with(WORDS)).collect();
    fuzz("configs", 1000, &seeds, |_, input| match std::str::from_utf8(input) {
        Err(_) => Verdict::Refused,
        Ok(text) => match Config::parse("a.toml", text, &[]) {
            // What is taken can be written and read again.
            Ok(config) => match Config::parse("b.toml", &config.resolved_toml().unwrap(), &[]) {
                Ok(again) if again == config => Verdict::Taken,
                again => Verdict::Wrong(format!("written and read again: {again:?}")),
            },
            error => judged(error),
        },
    });
}

/// A config of TRL's.
const YAML: &str = "\
model_name_or_path: model
datasets:
  - path: json
    data_files: plain.jsonl
output_dir: 'runs/trl'  # comment
learning_rate: 1.0e-5
per_device_train_batch_size: 2
warmup_ratio: 0.25
bf16: true
use_peft: true
lora_r: 4
lora_target_modules: [q_proj, v_proj]
center_rewards_coefficient: 0.01
";

/// A config of LLaMA-Factory's.
const FACTORY: &str = "\
stage: dpo
model_name_or_path: model
dataset: mine
cutoff_len: 60
pref_loss: sigmoid
pref_beta: 0.2
num_train_epochs: 2.0
";

const PYTHON: &str = "\
from trl import RewardConfig, RewardTrainer
SIZE = 2 * 3
args = RewardConfig(
    output_dir='runs/script', learning_rate=2e-5, max_steps=3,
    per_device_train_batch_size=SIZE, max_length=MAX,  # a name
    gradient_checkpointing=False,
)
data = load_dataset('json', data_files=\"plain.jsonl\", split='train')
trainer = RewardTrainer('model', args=args, train_dataset=data)
";

#[test]
fn configs_of_other_trainers() {
    const WORDS: &[&str] = &[
        "\n",
        "    ",
        "\t",
        ": ",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "|\n",
        ">-\n",
        "---\n",
        "{",
        "}",
        "[[[[",
        "'",
        "\"\"\"",
        "(",
        ")",
        "**",
        "f'{x}'",
        "r'",
        "\\",
        "\\u0000",
        "lambda: ",
        "10 ** 99",
        "1 / 0",
        "-",
        "1e999",
        "beta: -1\n",
        "num_train_epochs: 1e300\n",
        "max_steps=-1,",
        "stage: rm\n",
        "loss_type: ipo\n",
    ];
    let workspace = Workspace::new();
    let files = [("trl.yaml", YAML), ("factory.yaml", FACTORY), ("script.py", PYTHON)];
    let paths = files.map(|(name, _)| workspace.path(name));
    let seeds = files.map(|(_, text)| Seed::new(Form::Text, text).with(WORDS));
    // No file can be made there: what is to be written is whole then, and the standard output stays empty.
    let out = Path::new("/proc/self/run.toml");
    fuzz("init", 300, &seeds, |number, input| {
        fs::write(&paths[number], input).unwrap();
        // Models and data of its own could be on the hub.
        let named = |option: &str, path: &Path| [option.to_owned(), path.display().to_string()];
        let arguments = [
            named("--from", &paths[number]),
            named("--model", &workspace.path("model")),
            named("--train", &workspace.path("plain.jsonl")),
            named("--dev", &workspace.path("dev.jsonl")),
            named("--out", out),
        ];
        let arguments = ["haf-dist".to_owned(), "init".to_owned()].into_iter().chain(arguments.concat());
        let Ok(Request::Alone(init)) = Request::try_from(Arguments::try_parse_from(arguments).unwrap()) else {
            panic!("init runs alone");
        };
        match commands::alone(&init) {
            Err(error) if error.message.contains("cannot write /proc/self/run.toml") => Verdict::Taken,
            other => judged(other),
        }
    });
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Reads a file in the layout that is named, in the one that is told, and for scoring.
fn read_every_way(path: &Path, format: Format) -> Verdict {
    let source = Source { format, max_row_bytes: 1 << 20, ..Source::new(path) };
    let as_told = Source { format: Format::Auto, ..source.clone() };
    let verdicts = [judged(read(&source)), judged(read(&as_told)), judged(read_for_scoring(&as_told))];
    let mut taken = false;
    for verdict in verdicts {
        match verdict {
            Verdict::Taken => taken = true,
            Verdict::Refused => {}
            wrong => return wrong,
        }
    }
    if taken { Verdict::Taken } else { Verdict::Refused }
}

const OF_ROWS: &[&str] = &[
    "\n",
    "\r\n",
    "[",
    "]",
    "},{",
    "\\u0000",
    "\\ud83d",
    "NaN",
    "\\n\\nHuman: ",
    "\\n\\nAssistant: ",
    "{\"role\": \"user\", \"content\": \"a\"}",
    "\"content\": [{\"type\": \"text\", \"text\": \"a\"}]",
    "\"margin\": -1",
    "\"domain\": \"all\"",
    "\"tool_calls\": [{}]",
    "\"tools\": \"[]\"",
];

#[test]
fn rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let seed = |layout: &Layout| (layout.format, Seed::new(Form::JsonLines, layout.example).with(OF_ROWS));
    let (formats, seeds): (Vec<_>, Vec<_>) = LAYOUTS.iter().map(seed).unzip();
    fuzz("rows", 1000, &seeds, |number, input| {
        fs::write(&path, input).unwrap();
        read_every_way(&path, formats[number])
    });
}

#[test]
fn packed_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = json!({"prompt": "q", "chosen": "a", "rejected": "b"});
    let lines = format!("{row}\n").repeat(20);
    let array = Value::from(vec![row; 20]).to_string();
    let packed = [gzip(lines.as_bytes()), zstd::encode_all(lines.as_bytes(), 1).unwrap(), gzip(array.as_bytes())];
    let mut seeds: Vec<_> = packed.into_iter().map(|bytes| Seed::new(Form::Bytes, bytes)).collect();
    seeds.push(Seed::new(Form::Json, array).with(OF_ROWS));
    fuzz("packed-rows", 500, &seeds, |_, input| {
        fs::write(&path, input).unwrap();
        read_every_way(&path, Format::Auto)
    });
}

#[test]
fn parquet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    // The rest is not taken as it is.
    const WHOLE: &[&str] = &[
        "arena",
        "half",
        "pairs-gzip",
        "pairs-lz4",
        "pairs-none",
        "pairs-snappy",
        "pairs-zstd",
        "ranked",
        "types",
        "odd",
    ];
    let of = |name: &&str| of_repository(&format!("tests/parquet_files/{name}.parquet"));
    let seeds: Vec<_> = WHOLE.iter().map(|name| Seed::new(Form::Bytes, fs::read(of(name)).unwrap())).collect();
    fuzz("parquet", 300, &seeds, |_, input| {
        fs::write(&path, input).unwrap();
        read_every_way(&path, Format::Auto)
    });
}

#[test]
fn templates() {
    const WORDS: &[&str] = &[
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{%- for m in messages %}",
        "{% endfor %}",
        "{% if x %}",
        "{% endif %}",
        "{% set x = x ~ x %}",
        "{% macro f(a, b=1) %}",
        "{% endmacro %}",
        "{{ f(f) }}",
        "range(10 ** 9)",
        " recursive ",
        "loop(",
        "loop.index",
        "[::-1]",
        "| tojson(indent=99)",
        "| map(attribute='a.b') | list",
        "| join(x)",
        ".format(",
        "'%1000000d' % 1",
        ".replace('', x)",
        " * 99999999",
        " ** 9999",
        " // 0",
        "~",
        "namespace(a=[])",
        "cycler(1)",
        "{% generation %}",
        "{% endgeneration %}",
        "{% break %}",
        "is not none",
        "(((((((((",
        "not not not ",
    ];
    let templates = all_of("tests/templates/chat", "jinja").into_iter().map(|path| fs::read(path).unwrap());
    // Templates of a line each.
    let expressions = fs::read_to_string(of_repository("tests/templates/expressions.txt")).unwrap();
    let expressions = expressions.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let seeds = templates.chain(expressions.map(|line| line.replace('␤', "\n").into_bytes()));
    let talk = [Message::new("user", "a-bc"), Message::new("assistant", "d"), Message::new("user", "é\n")];
    let given = variables(&talk, &TemplateInputs::default(), &SpecialTokens::new(), true);
    // Some refuse this talk as they are.
    let read = |input: &[u8]| match std::str::from_utf8(input) {
        Ok(text) if Program::parse(text).and_then(|program| program.render(&given)).is_ok() => Verdict::Taken,
        _ => Verdict::Refused,
    };
    let whole = seeds.filter(|bytes| matches!(read(bytes), Verdict::Taken));
    let seeds: Vec<_> = whole.map(|bytes| Seed::new(Form::Text, bytes).with(WORDS)).collect();
    assert!(seeds.len() > 100, "{} templates", seeds.len());
    fuzz("templates", 1000, &seeds, |_, input| read(input));
}
