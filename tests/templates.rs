//! Promise: chat templates render as Transformers renders them, and whatever a template does, its rendering ends with a
//! text or an error, in bounded time and memory. Truth is `templates/truth.json`; see `templates/README.md`.

use haf_dist::data::template::jinja::Program;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
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

/// What Transformers passes to a template for this conversation, under its names.
fn variables(conversation: &Value) -> Map<String, Value> {
    let messages = &conversation["messages"];
    let last = messages.as_array().unwrap().last().unwrap();
    let given = json!({
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "messages": messages,
        "add_generation_prompt": last["role"] != "assistant", "tools": conversation["tools"],
        "documents": conversation["documents"],
    });
    let mut given = given.as_object().unwrap().clone();
    given.extend(conversation["arguments"].as_object().cloned().unwrap_or_default());
    given
}

fn rendered(template: &str, conversation: &Value) -> Result<String, String> {
    let text = Program::parse(template).and_then(|program| program.render(&variables(conversation)));
    text.map_err(|fault| fault.to_string())
}

/// One question, as make_truth.py gives it to expressions.
fn question() -> Value {
    json!({"messages": [{"role": "user", "content": "a-bc"}]})
}

/// Whether an outcome of the engine is Transformers': the text or its hash, or an error of both.
fn is_held(found: &Result<String, String>, expected: &str) -> bool {
    match found {
        Err(_) => expected == "raises",
        Ok(text) => text == expected || format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes())) == expected,
    }
}

#[test]
fn every_rendering_is_transformers() {
    let lines = read("conversations.jsonl");
    let conversations: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (mut held, mut controls, mut differ) = (0, 0, Vec::new());
    for (file, outcomes) in truth()["templates"].as_object().unwrap() {
        let template = read(file);
        for (conversation, expected) in conversations.iter().zip(outcomes.as_array().unwrap()) {
            let (found, expected) = (rendered(&template, conversation), expected.as_str().unwrap());
            // The failing control: one character more is noticed.
            let more = found.as_ref().map(|text| format!("{text} ")).map_err(String::clone);
            controls += usize::from(more.is_err() || !is_held(&more, expected));
            match is_held(&found, expected) {
                true => held += 1,
                false => differ.push(format!("{file}, {}: {found:?}, expected {expected}", conversation["name"])),
            }
        }
    }
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), differ.len() + held, differ.join("\n"));
    assert_eq!((held, controls), (108 * conversations.len(), held));
    assert_eq!(conversations.len(), 33);
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
        ("doubling lists", doubled("[ns.s, ns.s]")),
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
        ("deep generators", deep("[ns.s] | reverse")),
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

/// On the stack of a thread as the data workers have it.
fn on_a_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap()
}

#[test]
fn a_hostile_template_ends_with_an_error_in_bounded_time_and_memory() {
    for (name, source) in hostile() {
        let started = Instant::now();
        let outcome = on_a_small_stack(move || rendered(&source, &question()));
        let took = started.elapsed();
        let error = outcome.expect_err(name);
        println!("{name}: {took:?}, {} MiB so far: {error}", peak_mib());
        assert!(!error.is_empty() && error.len() < 300, "{name}: {error}");
        // A second on a machine of its own; CI's machines and debug builds have more.
        assert!(took < Duration::from_secs(10), "{name} took {took:?}");
    }
    assert!(peak_mib() < 1536, "{} MiB", peak_mib());
}

#[test]
fn bounds_say_which_one_was_reached_and_where() {
    for (source, message) in [
        ("a\n{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "computes too long"),
        ("a\n{% set x = 'x' * 10 ** 12 %}", "makes too much text"),
        ("{% macro m() %}{{ m() }}{% endmacro %}\n{{ m() }}", "nests too deep"),
        ("a\n{{ range(10 ** 9) }}", "a range may hold 100000"),
    ] {
        let fault = Program::parse(source).unwrap().render(&variables(&question())).unwrap_err();
        assert!(fault.bound && fault.line > 0 && fault.to_string().contains(message), "{fault}");
    }
    // The control: a template's own exception is no bound.
    let raised = Program::parse("\n{{ raise_exception('no') }}").unwrap().render(&variables(&question())).unwrap_err();
    assert_eq!((raised.bound, raised.to_string().as_str()), (false, "no (line 2 of the template)"));
}

#[test]
fn honest_templates_are_far_from_the_bounds() {
    let turn = |at: usize| json!({"role": if at % 2 == 0 { "user" } else { "assistant" }, "content": "word ".repeat(2000)});
    let long = json!({"messages": (0..200).map(turn).collect::<Vec<_>>()});
    for file in ["trl/qwen3.jinja", "trl/llama3_1.jinja", "trl/gptoss.jinja", "axolotl/command_a.jinja"] {
        let text = rendered(&read(file), &long).unwrap();
        assert!(text.len() > 1_900_000, "{file}: {}", text.len());
    }
}

/// Pieces of templates, which are put together at random.
const PIECES: &[&str] = &[
    "{{", "}}", "{%", "%}", "{#", "#}", "-", "+", "{{-", "-}}", "{%-", "-%}", " if ", " else ", " elif ", " endif ", " for ",
    " in ", " endfor ", " set ", " endset ", " macro ", " endmacro ", " call ", " endcall ", " filter ", " endfilter ",
    " with ", " endwith ", " raw ", " endraw ", " generation ", " endgeneration ", " break ", " continue ", " recursive ",
    " is ", " not ", " and ", " or ", "messages", "x", "y", "loop", "m", "ns", "namespace(", "range(", "cycler(", "joiner(",
    "dict(", "strftime_now(", "raise_exception(", "(", ")", "[", "]", "{", "}", ",", ":", ".", "|", "~", "=", "==", "<", "*",
    "**", "/", "//", "%", "'", "\"", "\\", "'a'", "'%s'", "'%9d'", "'{:>9}'", "1", "0", "-1", "1e308", "99999999999999999999",
    "1.5", "none", "true", "messages[0]", ".content", ".role", "[::-1]", "[1:]", ".items()", ".split(", ".format(", ".join(",
    ".replace(", "|tojson", "|join(", "|map(", "|select(", "|selectattr(", "|groupby(", "|sort", "|list", "|first", "|last",
    "|length", "|int", "|float", "|round(", "|batch(", "|slice(", "|indent(", "|truncate(", "|format(", "|default(", "|sum",
    "|min", "|unique", "|dictsort", "|reverse", "|string", "|trim", " is defined", " is mapping", " is divisibleby ", "é", "🕷",
    "\n", " ", "\u{1c5}", "\u{0}",
];

/// Whole statements, so that more of them run.
const STATEMENTS: &[&str] = &[
    "{% for x in E %}", "{% endfor %}", "{% if E %}", "{% else %}", "{% endif %}", "{% set x = E %}", "{% set y = E %}",
    "{{ E }}", "{{ E|tojson }}", "{% macro m(x, y=E) %}", "{% endmacro %}", "{{ m(E) }}", "{% set x %}", "{% endset %}",
    "{% with x = E %}", "{% endwith %}", "{% call m(E) %}", "{% endcall %}", "{% filter upper %}", "{% endfilter %}", "text\n  ",
    "{% set ns = namespace(a=E) %}", "{% set ns.a = E %}", "{{ ns.a }}", "{% for x, y in E %}", "{{ loop.index }}",
];
const TERMS: &[&str] = &[
    "messages", "x", "y", "ns.a", "1", "-7", "2.5", "1e400", "'nan'|float", "'a b'", "'é🕷'", "none", "true", "[1, 'b', none]",
    "{'k': 2, 3: [4]}", "(1, 2)", "range(9)", "missing", "loop", "m", "messages[0]", "10 ** 30", "'%5.2f'", "'{:^9}'", "''",
];
const OPERATIONS: &[&str] = &[
    " + ", " - ", " * ", " / ", " // ", " % ", " ** ", " ~ ", " == ", " < ", " in ", " and ", " or ", " is eq ", " is divisibleby ",
    "[A]", "[A:B]", "[A:B:C]", "|join(A)", "|map(A)", "|sort", "|sort(reverse=true)", "|list", "|groupby(A)", "|batch(A, B)",
    "|slice(A)", "|round(A)", "|int", "|float", "|abs", "|center(A)", "|indent(A)", "|truncate(A, true, B)", "|format(A, B)",
    "|replace(A, B)", "|sum", "|min", "|max", "|unique|list", "|dictsort", "|items|list", "|tojson(indent=A)", "|string",
    ".format(A, B)", ".split(A)", ".rsplit(A, B)", ".replace(A, B, C)", ".find(A, B, C)", ".count(A)", ".center(A, B)",
    ".zfill(A)", ".join(A)", ".startswith(A, B)", ".get(A, B)", ".items()", ".index(A)", "|first", "|last", "|reverse|list",
    "|length", "|title", "|wordcount", "|select(A)|list", "|selectattr(A, B)|list", "|attr(A)", " is iterable", "(A)", "(A, k=B)",
    ".partition(A)", ".splitlines(A)", ".expandtabs(A)", ".strip(A)", ".title()", ".isupper()", ".previtem", ".cycle(A, B)",
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
