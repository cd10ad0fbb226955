//! Promise: chat templates render as Transformers renders them, and whatever a template does, its rendering ends with a
//! text or an error, in bounded time and memory. Truth is `templates/truth.json`; see `templates/README.md`.

use haf_dist::config::TemplateKind;
use haf_dist::data::template::jinja::{Fault, Program};
use haf_dist::data::template::{SpecialTokens, Template, variables};
use haf_dist::data::{Message, Prompt, TemplateInputs};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn truth() -> Value {
    serde_json::from_str(&read("truth.json")).unwrap()
}

/// The special tokens of make_truth.py's tokenizer.
fn special_tokens() -> SpecialTokens {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];
    tokens.map(|(name, text)| (name.into(), text.into())).into()
}

/// What a template writes of these messages, with a generation prompt.
fn rendered(template: &str, messages: &[Message]) -> Result<String, Fault> {
    Program::parse(template)?.render(&variables(messages, &TemplateInputs::default(), &special_tokens(), true))
}

/// A model's folder that has this template.
fn opened(template: &str) -> Result<Template, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), json!(special_tokens()).to_string()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    Template::open(TemplateKind::Chat, folder.path()).map_err(|error| error.message)
}

struct Conversation {
    name: String,
    messages: Vec<Message>,
    inputs: TemplateInputs,
}

fn conversations() -> Vec<Conversation> {
    let conversation = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let list = |key: &str| row[key].as_array().cloned();
        let arguments = row["arguments"].as_object().cloned().unwrap_or_default();
        let inputs = TemplateInputs { tools: list("tools"), documents: list("documents"), arguments };
        let messages = serde_json::from_value(row["messages"].clone()).unwrap();
        Conversation { name: row["name"].as_str().unwrap().into(), messages, inputs }
    };
    read("conversations.jsonl").lines().map(conversation).collect()
}

/// A conversation as a row of data is rendered: up to the answer, or with the answer that ends it.
fn rendered_row(template: &Template, Conversation { messages, inputs, .. }: &Conversation) -> Result<String, String> {
    let text = match messages.split_last() {
        Some((answer, before)) if answer.role == "assistant" => {
            template.render(&Prompt::Messages(before.to_vec()), inputs, answer)
        }
        _ => template.render_prompt(&Prompt::Messages(messages.clone()), inputs),
    };
    text.map_err(|error| error.message)
}

/// The messages that make_truth.py gives to expressions.
fn question() -> [Message; 1] {
    [Message::new("user", "a-bc")]
}

/// Whether an outcome is Transformers': the text or its hash, or an error of both.
fn is_held(found: &Result<String, String>, expected: &str) -> bool {
    match found {
        Err(_) => expected == "raises",
        Ok(text) => text == expected || format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes())) == expected,
    }
}

/// Templates that [`Template`] refuses: they write content parts (images and texts) alone, and no text as it is.
const WITHOUT_ANSWER: [&str; 6] = [
    "trl/idefics3.jinja",
    "trl/idefics3_training.jinja",
    "trl/llava_next.jinja",
    "trl/llava_next_training.jinja",
    "trl/smolvlm.jinja",
    "trl/smolvlm_training.jinja",
];

#[test]
fn every_rendering_is_transformers() {
    let conversations = conversations();
    let (mut held, mut controls, mut differ, mut without_answer) = (0, 0, Vec::new(), Vec::new());
    let truth = truth();
    for (file, outcomes) in truth["templates"].as_object().unwrap() {
        let source = read(file);
        let program = Program::parse(&source).unwrap();
        let template = opened(&source);
        if template.is_err() {
            without_answer.push(file.as_str());
        }
        for (row, expected) in conversations.iter().zip(outcomes.as_array().unwrap()) {
            let is_question = row.messages.last().unwrap().role != "assistant";
            let given = variables(&row.messages, &row.inputs, &special_tokens(), is_question);
            let found = program.render(&given).map_err(|fault| fault.to_string());
            let (as_row, expected) =
                (template.as_ref().map(|template| rendered_row(template, row)), expected.as_str().unwrap());
            // The failing control: one character more is noticed.
            let more = found.as_ref().map(|text| format!("{text} ")).map_err(String::clone);
            controls += usize::from(more.is_err() || !is_held(&more, expected));
            match is_held(&found, expected) && as_row.map_or(true, |text| is_held(&text, expected)) {
                true => held += 1,
                false => differ.push(format!("{file}, {}: {found:?}, expected {expected}", row.name)),
            }
        }
    }
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), differ.len() + held, differ.join("\n"));
    assert_eq!(without_answer, WITHOUT_ANSWER);
    assert_eq!((held, controls), (108 * 33, held));
}

#[test]
fn every_expression_is_jinjas() {
    let truth = truth();
    let expressions = truth["expressions"].as_object().unwrap();
    let mut differ = Vec::new();
    for (line, expected) in expressions {
        let found = rendered(&line.replace('␤', "\n"), &question());
        if found.as_ref().ok().map(String::as_str) != expected.as_str() {
            differ.push(format!("{line}\n  gives    {found:?}\n  expected {expected}"));
        }
    }
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), expressions.len(), differ.join("\n"));
    let asked = read("expressions.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert_eq!(expressions.len(), asked, "run make_truth.py again");
}

/// This process's largest memory so far, in MiB.
fn peak_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// Templates that would compute, allocate or nest without end.
fn hostile() -> Vec<(&'static str, String)> {
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let doubled = "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = STEP %}{% endfor %}";
    let doubled = |step: &str| doubled.replace("STEP", step);
    let counted = nested("{% for i in range(100000) %}", "", "{% endfor %}", 4);
    let big = "{% set big = 'x' * 1000000 %}";
    let deep = "{% set ns = namespace(s=[]) %}{% for i in range(5000) %}{% set ns.s = MORE %}{% endfor %}";
    let deep = |more: &str| deep.replace("MORE", more);
    vec![
        ("nested loops", counted),
        ("nested loops over text", format!("{big}{}", nested("{% for c in big %}", "", "{% endfor %}", 3))),
        ("doubling ~", doubled("ns.s ~ ns.s")),
        ("doubling +", doubled("ns.s + ns.s")),
        ("doubling %", doubled("'%s%s' % (ns.s, ns.s)")),
        ("doubling format", doubled("'{0}{0}'.format(ns.s)")),
        ("doubling filter format", doubled("'%s%s' | format(ns.s, ns.s)")),
        ("doubling join", doubled("[ns.s, ns.s] | join")),
        ("doubling str.join", doubled("''.join([ns.s, ns.s])")),
        ("doubling replace", doubled("ns.s.replace('a', 'aa').replace('b', 'bb')")),
        ("doubling lists, printed", "{% set ns = namespace(s=[]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}\
          {% endfor %}{{ ns.s }}".into()),
        ("doubling lists, as JSON", "{% set ns = namespace(s=[]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}\
          {% endfor %}{{ ns.s | tojson }}".into()),
        ("doubling lists, compared", "{% set ns = namespace(s=[], t=[]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}\
          {% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}".into()),
        ("doubling set blocks", "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set s %}{{ ns.s }}{{ ns.s }}\
          {% endset %}{% set ns.s = s %}{% endfor %}".into()),
        ("doubling macros", "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='ab') %}\
          {% for i in range(99) %}{% set ns.s = m(ns.s) %}{% endfor %}".into()),
        ("printing without end", format!("{big}{}", nested("{% for i in range(1000) %}", "{{ big }}", "{% endfor %}", 2))),
        ("giant range", "{% for i in range(10 ** 15) %}x{% endfor %}".into()),
        ("giant range as a list", "{{ range(10 ** 18) | list }}".into()),
        ("giant *", "{{ 'x' * 10 ** 12 }}".into()),
        ("giant * of a list", "{{ [1] * 10 ** 12 }}".into()),
        ("giant power", "{{ 9 ** 999999 }}".into()),
        ("giant replace", format!("{big}{{{{ big.replace('x', big) }}}}")),
        ("giant replace of nothing", format!("{big}{{{{ big.replace('', big) }}}}")),
        ("giant replace by the filter", format!("{big}{{{{ big | replace('x', big) }}}}")),
        ("giant join", format!("{big}{{{{ big.join(big) }}}}")),
        ("giant join by the filter", format!("{big}{{{{ big | join(big) }}}}")),
        ("giant width", "{{ '%999999999d' % 1 }}".into()),
        ("giant precision", "{{ '%.70000f' % 1.5 }}".into()),
        ("giant width of a field", "{{ '{:999999999}'.format(1) }}".into()),
        ("giant precision of a field", "{{ '{:.999999999f}'.format(1.5) }}".into()),
        ("giant center", "{{ 'x'.center(10 ** 12) }}".into()),
        ("giant center by the filter", "{{ 'x' | center(10 ** 12) }}".into()),
        ("giant zfill", "{{ 'x'.zfill(10 ** 12) }}".into()),
        ("giant indent", "{{ 'x\\ny' | indent(10 ** 12) }}".into()),
        ("giant indent of JSON", "{{ [1] | tojson(indent=10 ** 12) }}".into()),
        ("giant tabs", "{{ '\\t'.expandtabs(10 ** 12) }}".into()),
        ("giant batch", "{{ [1] | batch(10 ** 12, 0) | list }}".into()),
        ("giant slice", "{{ [1] | slice(10 ** 12) | list }}".into()),
        ("searching without end", format!("{big}{{% for i in range(100000) %}}{{{{ 'y' in big }}}}{{% endfor %}}")),
        ("splitting without end", format!("{big}{{% for i in range(100000) %}}{{% set s = big.split('x') %}}{{% endfor %}}")),
        ("upper without end", format!("{big}{{% for i in range(100000) %}}{{% set s = big.upper() %}}{{% endfor %}}")),
        ("sorting without end", format!("{big}{{% for i in range(100000) %}}{{% set s = big | sort %}}{{% endfor %}}")),
        ("a long dict", format!("{big}{{% set d = dict(range(100000) | batch(2)) %}}{{{{ d.keys() | list | length }}}}")),
        ("recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into()),
        ("recursion by two", "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".into()),
        ("recursion through call", "{% macro m() %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}".into()),
        ("recursion through defaults", "{% macro m(x=m()) %}{% endmacro %}{{ m() }}".into()),
        ("recursion bounded in depth, not in width", "{% macro m(n) %}{% if n %}{% for i in range(9) %}{{ m(n - 1) }}\
          {% endfor %}{% endif %}{% endmacro %}{{ m(20) }}".into()),
        ("a recursive loop", "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".into()),
        ("names through many scopes", "{% macro m(n) %}{% with a = 1 %}{% with b = 2 %}{% if n %}{{ m(n - 1) }}{% else %}\
          {% for i in range(100000) %}{% for j in range(1000) %}{% set x = messages %}{% endfor %}{% endfor %}{% endif %}\
          {% endwith %}{% endwith %}{% endmacro %}{{ m(20) }}".into()),
        ("deep lists", deep("[ns.s]")),
        ("deep tuples", deep("(ns.s,)")),
        ("deep dicts", deep("{'a': ns.s}")),
        ("deep methods", deep("{'a': ns.s}.get")),
        ("deep parentheses", format!("{{{{ {} }}}}", nested("(", "1", ")", 100_000))),
        ("deep brackets", format!("{{{{ {} }}}}", nested("[", "1", "]", 100_000))),
        ("deep minus", format!("{{{{ {}1 }}}}", "-".repeat(100_000))),
        ("deep not", format!("{{{{ {}1 }}}}", "not ".repeat(100_000))),
        ("deep sums", format!("{{{{ 1{} }}}}", " + 1".repeat(100_000))),
        ("deep sums in parentheses", format!("{{{{ {} }}}}", nested("(", "1", &format!("{})", " + 1 * 2".repeat(50)), 90))),
        ("deep filters", format!("{{{{ 1{} }}}}", "|string".repeat(100_000))),
        ("deep attributes", format!("{{{{ a{} }}}}", ".b".repeat(100_000))),
        ("deep conditions", format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(100_000))),
        ("deep blocks", nested("{% if 1 %}", "x", "{% endif %}", 10_000)),
        ("deep loops", nested("{% for x in y %}", "x", "{% endfor %}", 10_000)),
        ("deep targets", format!("{{% set {} = 1 %}}", nested("(", "x", ")", 100_000))),
        ("a long source", "x".repeat(50 << 20)),
    ]
}

/// What a thread with the stack of a data worker renders, and the processor's time it took.
fn on_a_small_stack(source: String) -> (Result<String, Fault>, Duration) {
    let work = move || {
        let outcome = rendered(&source, &question());
        let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        (outcome, Duration::from_nanos(times.split_whitespace().next().unwrap().parse().unwrap()))
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap()
}

#[test]
fn a_hostile_template_ends_with_an_error_in_bounded_time_and_memory() {
    for (name, source) in hostile() {
        let (outcome, took) = on_a_small_stack(source);
        let error = outcome.expect_err(name).to_string();
        println!("{name}: {took:?}, {} MiB so far: {error}", peak_mib());
        assert!(!error.is_empty() && error.len() < 300, "{name}: {error}");
        // A second where it is optimised.
        assert!(took < Duration::from_secs(3), "{name} took {took:?}");
    }
    assert!(peak_mib() < 1024, "{} MiB", peak_mib());
}

#[test]
fn bounds_say_which_one_was_reached_and_where() {
    for (source, message) in [
        ("a\n{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "computes too long"),
        ("a\n{% set x = 'x' * 10 ** 12 %}", "makes too much text"),
        ("{% macro m() %}{{ m() }}{% endmacro %}\n{{ m() }}", "nests too deep"),
        ("a\n{{ range(10 ** 9) }}", "a range may hold 100000"),
    ] {
        let fault = rendered(source, &question()).unwrap_err();
        assert!(fault.bound && fault.line > 0 && fault.to_string().contains(message), "{fault}");
    }
    // The control: a template's own exception is no bound.
    let raised = rendered("\n{{ raise_exception('no') }}", &question()).unwrap_err();
    assert_eq!((raised.bound, raised.to_string().as_str()), (false, "no (line 2 of the template)"));
}

#[test]
fn honest_templates_are_far_from_the_bounds() {
    let turn = |at: usize| Message::new(if at % 2 == 0 { "user" } else { "assistant" }, "word ".repeat(2000));
    let long: Vec<Message> = (0..2000).map(turn).collect();
    for file in ["trl/qwen3.jinja", "trl/llama3_1.jinja", "trl/gptoss.jinja", "axolotl/command_a.jinja"] {
        let text = rendered(&read(file), &long).unwrap();
        assert!(text.len() > 19_000_000, "{file}: {}", text.len());
    }
}

/// Pieces of templates, which are put together at random.
const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-",
    "+",
    "{{-",
    "-}}",
    "{%-",
    "-%}",
    " if ",
    " else ",
    " elif ",
    " endif ",
    " for ",
    " in ",
    " endfor ",
    " set ",
    " endset ",
    " macro ",
    " endmacro ",
    " call ",
    " endcall ",
    " filter ",
    " endfilter ",
    " with ",
    " endwith ",
    " raw ",
    " endraw ",
    " generation ",
    " endgeneration ",
    " break ",
    " continue ",
    " recursive ",
    " is ",
    " not ",
    " and ",
    " or ",
    "messages",
    "x",
    "y",
    "loop",
    "m",
    "ns",
    "namespace(",
    "range(",
    "cycler(",
    "joiner(",
    "dict(",
    "strftime_now(",
    "raise_exception(",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    ".",
    "|",
    "~",
    "=",
    "==",
    "<",
    "*",
    "**",
    "/",
    "//",
    "%",
    "'",
    "\"",
    "\\",
    "'a'",
    "'%s'",
    "'%9d'",
    "'{:>9}'",
    "1",
    "0",
    "-1",
    "1e308",
    "99999999999999999999",
    "1.5",
    "none",
    "true",
    "messages[0]",
    ".content",
    ".role",
    "[::-1]",
    "[1:]",
    ".items()",
    ".split(",
    ".format(",
    ".join(",
    ".replace(",
    "|tojson",
    "|join(",
    "|map(",
    "|select(",
    "|selectattr(",
    "|groupby(",
    "|sort",
    "|list",
    "|first",
    "|last",
    "|length",
    "|int",
    "|float",
    "|round(",
    "|batch(",
    "|slice(",
    "|indent(",
    "|truncate(",
    "|format(",
    "|default(",
    "|sum",
    "|min",
    "|unique",
    "|dictsort",
    "|reverse",
    "|string",
    "|trim",
    " is defined",
    " is mapping",
    " is divisibleby ",
    "é",
    "🕷",
    "\n",
    " ",
    "\u{1c5}",
    "\u{0}",
];

/// Whole statements, so that more of them run.
const STATEMENTS: &[&str] = &[
    "{% for x in E %}",
    "{% endfor %}",
    "{% if E %}",
    "{% else %}",
    "{% endif %}",
    "{% set x = E %}",
    "{% set y = E %}",
    "{{ E }}",
    "{{ E|tojson }}",
    "{% macro m(x, y=E) %}",
    "{% endmacro %}",
    "{{ m(E) }}",
    "{% set x %}",
    "{% endset %}",
    "{% with x = E %}",
    "{% endwith %}",
    "{% call m(E) %}",
    "{% endcall %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "text\n  ",
    "{% set ns = namespace(a=E) %}",
    "{% set ns.a = E %}",
    "{{ ns.a }}",
    "{% for x, y in E %}",
    "{{ loop.index }}",
];
const TERMS: &[&str] = &[
    "messages",
    "x",
    "y",
    "ns.a",
    "1",
    "-7",
    "2.5",
    "1e400",
    "'nan'|float",
    "'a b'",
    "'é🕷'",
    "none",
    "true",
    "[1, 'b', none]",
    "{'k': 2, 3: [4]}",
    "(1, 2)",
    "range(9)",
    "missing",
    "loop",
    "m",
    "messages[0]",
    "10 ** 30",
    "'%5.2f'",
    "'{:^9}'",
    "''",
];
const OPERATIONS: &[&str] = &[
    " + ",
    " - ",
    " * ",
    " / ",
    " // ",
    " % ",
    " ** ",
    " ~ ",
    " == ",
    " < ",
    " in ",
    " and ",
    " or ",
    " is eq ",
    " is divisibleby ",
    "[A]",
    "[A:B]",
    "[A:B:C]",
    "|join(A)",
    "|map(A)",
    "|sort",
    "|sort(reverse=true)",
    "|list",
    "|groupby(A)",
    "|batch(A, B)",
    "|slice(A)",
    "|round(A)",
    "|int",
    "|float",
    "|abs",
    "|center(A)",
    "|indent(A)",
    "|truncate(A, true, B)",
    "|format(A, B)",
    "|replace(A, B)",
    "|sum",
    "|min",
    "|max",
    "|unique|list",
    "|dictsort",
    "|items|list",
    "|tojson(indent=A)",
    "|string",
    ".format(A, B)",
    ".split(A)",
    ".rsplit(A, B)",
    ".replace(A, B, C)",
    ".find(A, B, C)",
    ".count(A)",
    ".center(A, B)",
    ".zfill(A)",
    ".join(A)",
    ".startswith(A, B)",
    ".get(A, B)",
    ".items()",
    ".index(A)",
    "|first",
    "|last",
    "|reverse|list",
    "|length",
    "|title",
    "|wordcount",
    "|select(A)|list",
    "|selectattr(A, B)|list",
    "|attr(A)",
    " is iterable",
    "(A)",
    "(A, k=B)",
    ".partition(A)",
    ".splitlines(A)",
    ".expandtabs(A)",
    ".strip(A)",
    ".title()",
    ".isupper()",
    ".previtem",
    ".cycle(A, B)",
    " if A else B",
];

/// An expression of terms and operations.
fn expression() -> impl Strategy<Value = String> {
    let term = || prop::sample::select(TERMS);
    let operation = (prop::sample::select(OPERATIONS), prop::array::uniform4(term()));
    (term(), prop::collection::vec(operation, 0..5)).prop_map(|(first, operations)| {
        operations.into_iter().fold(first.to_owned(), |left, (operation, [next, a, b, c])| {
            let is_binary = operation.ends_with(' ');
            let filled = operation.replace('A', a).replace('B', b).replace('C', c);
            format!("({left}){filled}{}", if is_binary { next } else { "" })
        })
    })
}

fn template() -> impl Strategy<Value = String> {
    let statement = (prop::sample::select(STATEMENTS), expression());
    let statements = prop::collection::vec(statement, 0..12);
    let statements = statements.prop_map(|all| all.into_iter().map(|(one, inner)| one.replace('E', &inner)).collect());
    let pieces = prop::collection::vec(prop::sample::select(PIECES), 0..60).prop_map(|all| all.concat());
    let printed = expression().prop_map(|inner| format!("{{{{ {inner} }}}}"));
    prop_oneof![2 => statements, 1 => pieces, 3 => printed, 1 => ".{0,40}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn no_template_panics_or_hangs(source in template()) {
        let started = Instant::now();
        let _outcome = rendered(&source, &question());
        prop_assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
    }
}
