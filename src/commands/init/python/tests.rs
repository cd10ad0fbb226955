//! Promise: a script's literals are read as Python reads them, other arguments are listed, and nothing is run.

#![allow(clippy::unwrap_used)]
use super::*;
use serde_json::json;

fn value_of(expression: &str) -> Option<Value> {
    let content = read(&format!("RewardConfig(x={expression})")).unwrap();
    assert_eq!(content.items.len() + content.unread.len(), 1, "{expression}");
    content.items.first().map(|item| item.value.clone())
}

#[test]
fn literals_are_what_python_makes_of_them() {
    let cases = [
        ("'it\\'s \\n\\x41\\u00e9\\101'", json!("it's \nAéA")),
        ("\"a\" 'b' \"\"\"c\nd\"\"\"", json!("abc\nd")),
        ("r'\\d+\\''", json!("\\d+\\'")),
        ("u'x\\q'", json!("x\\q")),
        ("'one \\\n two'", json!("one  two")),
        ("-5", json!(-5)),
        ("- 1_000", json!(-1000)),
        ("5e-5", json!(5e-5)),
        (".5", json!(0.5)),
        ("1.E+3", json!(1e3)),
        ("0x1F", json!(31)),
        ("True", json!(true)),
        ("None", Value::Null),
        ("[1, 'a', [2.5,],]", json!([1, "a", [2.5]])),
        ("('a')", json!("a")),
        ("('a',)", json!(["a"])),
        ("()", json!([])),
        ("{'a': {'b': [1]}, 2: False}", json!({"a": {"b": [1]}, "2": false})),
        ("{'q_proj', 'v_proj'}", json!(["q_proj", "v_proj"])),
        ("{}", json!({})),
        ("[ # a comment, with ) and '\n 1,\n 2 ]", json!([1, 2])),
    ];
    for (expression, expected) in cases {
        assert_eq!(value_of(expression), Some(expected), "{expression}");
    }
}

#[test]
fn what_is_no_literal_is_listed_and_not_guessed() {
    let expressions = [
        "f'{name}'",
        "rf'x'",
        "b'x'",
        "'\\N{BULLET}'",
        "name",
        "2 * 4",
        "a.b",
        "f(1)",
        "lambda: 1",
        "x == 1",
        "1j",
        "1e999",
        "[1, x]",
        "{**a}",
        "{'a': 1, 2}",
        "[1 2]",
        "(,)",
        "+",
        "'a' + 'b'",
        "not True",
        "-'a'",
        "x if y else 1",
        "[]()",
        "99999999999999999999x",
    ];
    for expression in expressions {
        assert_eq!(value_of(expression), None, "{expression}");
    }
}

const SCRIPT: &str = r#"
from trl import RewardConfig, RewardTrainer   # RewardConfig(learning_rate=9) in a comment
TEXT = "RewardConfig(learning_rate=8)"
class RewardConfig(Base):
    pass
model = AutoModelForSequenceClassification.from_pretrained("org/model", num_labels=1, revision="abc")
tokenizer = AutoTokenizer.from_pretrained("org/other")
trainer = RewardTrainer(
    model=model,
    args=RewardConfig(
        output_dir="runs/a",
        learning_rate=1e-5,
        per_device_train_batch_size=BATCH,
        **extra,
    ),
    train_dataset=load_dataset("org/pairs", split="train[:1000]"),
    peft_config=LoraConfig(r=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0),
)
"#;

#[test]
fn calls_are_found_wherever_they_stand_and_nowhere_else() {
    let content = read(SCRIPT).unwrap();
    let found: Vec<_> = content.items.iter().map(|item| (item.line, &item.name[..], item.value.clone())).collect();
    assert_eq!(
        found,
        [
            (6, "model_name_or_path", json!("org/model")),
            (6, "num_labels", json!(1)),
            (6, "model_revision", json!("abc")),
            (11, "output_dir", json!("runs/a")),
            (12, "learning_rate", json!(1e-5)),
            (16, "load_dataset", json!({"path": "org/pairs", "split": "train[:1000]"})),
            (17, "lora_r", json!(16)),
            (17, "lora_target_modules", json!(["q_proj", "v_proj"])),
            (17, "lora_dropout", json!(0.0)),
        ]
    );
    let unread: Vec<_> = content.unread.iter().map(|unread| (unread.line, &unread.text[..])).collect();
    assert_eq!(unread, [(13, "RewardConfig(per_device_train_batch_size=BATCH)"), (14, "RewardConfig(**extra)"),]);
}

/// Promise: what is taken over is not listed as left out.
#[test]
fn a_call_whose_result_has_a_name_is_read_once() {
    let script = "cfg = RewardConfig(learning_rate=1e-5)\ndata = load_dataset('org/pairs')\n\
                  RewardTrainer(args=cfg, train_dataset=data, eval_dataset=other, model=net)\n";
    let content = read(script).unwrap();
    assert_eq!(content.items.len(), 2);
    let unread: Vec<_> = content.unread.iter().map(|unread| &unread.text[..]).collect();
    assert_eq!(unread, ["RewardTrainer(eval_dataset=other)", "RewardTrainer(model=net)"]);
}

#[test]
fn hostile_scripts_are_errors_or_say_nothing() {
    let deep = format!("RewardConfig(x={}", "(".repeat(200_000));
    let calls = "RewardConfig(".repeat(60_000);
    for broken in [&deep[..], &calls, "RewardConfig(", "RewardConfig(x='a\n')", "x = '''", "'\\", "RewardConfig(x=[1)"]
    {
        assert!(read(broken).is_err(), "{:?}", &broken[..broken.len().min(40)]);
    }
    let many = "RewardConfig(x=1)\n".repeat(50_000);
    for nothing in
        ["", "\\", "\u{0}\u{1}\u{feff}", "RewardConfig", "é = 1 ·", &"-".repeat(500_000), &"\"\" ".repeat(200_000)]
    {
        assert_eq!(read(nothing).unwrap(), Content::default());
    }
    assert_eq!(read(&many).unwrap().items.len(), 50_000);
}
