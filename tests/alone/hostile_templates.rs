//! Promise: whatever a chat template does, reading and rendering it ends with a text or an error, in bounded time and memory,
//! on the stack of a data worker.

use haf_dist::data::template::jinja::{Fault, Program};
use haf_dist::data::template::{SpecialTokens, variables};
use haf_dist::data::{Message, TemplateInputs};
use std::time::Duration;

/// What a template writes of these messages, with a generation prompt.
fn rendered(template: &str, messages: &[Message]) -> Result<String, Fault> {
    Program::parse(template)?.render(&variables(messages, &TemplateInputs::default(), &SpecialTokens::new(), true))
}

/// What templates are given here.
fn question() -> [Message; 1] {
    [Message::new("user", "a-bc")]
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
        // A second where it is optimized.
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
