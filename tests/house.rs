//! Promise: the house keeps its shape. Imports go down only, `unsafe` stays in its rooms, foreign libraries behind their
//! one door, files short, library code without panics that a user can cause, and no path of anybody's machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules by floor; a file's module is the first part of its path under src/.
///
/// `config` is a plain table of values that the losses and readers below read too, so it lies low.
const FLOORS: &[&[&str]] = &[
    &["error", "tensor", "files", "statistics", "packing", "memory", "panics", "parallel", "signals", "terminal"],
    &["ops", "config", "comm", "logging", "safetensors_io"],
    &["model", "loss", "data", "hub"],
    &["head", "engine", "scoring", "reference", "reducer", "optim", "sharding", "checkpoint", "metrics", "machine"],
    &["evaluate", "trainer", "comparison", "plan"],
    &["cli", "commands", "main", "lib"],
];

/// Imports within a floor: (from, to).
const WITHIN: &[(&str, &str)] = &[
    ("files", "error"),
    ("parallel", "error"),
    ("signals", "error"),
    ("tensor", "error"),
    ("terminal", "error"),
    ("safetensors_io", "config"),
    ("engine", "head"),
    ("scoring", "engine"),
    ("scoring", "head"),
    ("reference", "engine"),
    ("reference", "scoring"),
    ("metrics", "checkpoint"),
    ("reducer", "engine"),
    ("trainer", "evaluate"),
    ("commands", "cli"),
    ("main", "cli"),
    ("main", "commands"),
];

/// Files that may hold `unsafe`, each for one reason: raw slices, memory maps, the allocator, ending an MPI process, memory that
/// processes share, the regex engine's bound, vector instructions and matrix tiles, malloc's settings, the CUDA driver, NCCL.
const UNSAFE: &[&str] = &[
    "tensor.rs",
    "files/map.rs",
    "memory.rs",
    "comm/mpi.rs",
    "comm/shared.rs",
    "comm/nccl/cuda.rs",
    "comm/nccl/group.rs",
    "ops/cpu/amx.rs",
    "ops/cpu/tile.rs",
    "ops/cpu/weight_gradient.rs",
    "machine.rs",
];

/// How a crate is named, and the only file or folder that may.
const DOORS: &[(&str, &str)] = &[
    ("use mpi::", "comm/mpi.rs"),
    ("use tokenizers::", "data/tokenize"),
    ("use parquet::", "data/parquet"),
    ("use hf_hub::", "hub/client.rs"),
    ("cudarc::", "comm/nccl/"),
    ("libloading::", "comm/nccl/"),
];

/// Where a file may ask which device it is on: where operations are chosen and memory is laid out.
const ASKS_FOR_DEVICE: &[&str] = &["ops/", "machine", "tensor.rs", "reducer.rs"];

const LONGEST: usize = 400;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Path under `folder` -> text, for every Rust file.
fn files(folder: &str) -> BTreeMap<String, String> {
    fn walk(folder: &Path, base: &Path, into: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, base, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(base).unwrap().to_string_lossy().into_owned();
                into.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    let base = root().join(folder);
    walk(&base, &base, &mut found);
    assert!(!found.is_empty());
    found
}

fn module(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

fn floor(module: &str) -> usize {
    let floor = FLOORS.iter().position(|floor| floor.contains(&module));
    floor.unwrap_or_else(|| panic!("module {module} has no floor: give it one in tests/house.rs"))
}

/// The part of a file that is shipped: without its unit tests and comments.
fn shipped(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Modules of this crate that a text names through `crate::` or `haf_dist::`, braces included.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in ["crate::", "haf_dist::"] {
        for (at, _) in text.match_indices(prefix) {
            let rest = &text[at + prefix.len()..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap().split(',').map(str::trim).collect(),
                None => vec![rest],
            };
            for name in names {
                let end = name.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(name.len());
                found.insert(name[..end].to_string());
            }
        }
    }
    found.remove("");
    found
}

fn breaches(file: &str, text: &str) -> Vec<String> {
    let from = module(file);
    let allowed =
        |to: &str| to == from || floor(to) < floor(from) || (floor(to) == floor(from) && WITHIN.contains(&(from, to)));
    imports(text).into_iter().filter(|to| !allowed(to)).map(|to| format!("{file} imports {to}")).collect()
}

#[test]
fn imports_go_down_only() {
    let found: Vec<String> = files("src").iter().flat_map(|(file, text)| breaches(file, &shipped(text))).collect();
    assert!(found.is_empty(), "{found:#?}");
    // Control: a breach is noticed, in a group too.
    assert_eq!(breaches("loss.rs", "use crate::trainer::Trainer;"), ["loss.rs imports trainer"]);
    assert_eq!(breaches("main.rs", "use haf_dist::{config::Config, cli};"), Vec::<String>::new());
    assert_eq!(breaches("data/batch.rs", "use crate::{error, engine};"), ["data/batch.rs imports engine"]);
}

#[test]
fn imports_within_a_floor_have_no_circle() {
    let mut left: Vec<(&str, &str)> = WITHIN.to_vec();
    loop {
        let targets: BTreeSet<&str> = left.iter().map(|(from, _)| *from).collect();
        let before = left.len();
        // What imports only modules that import nothing more is settled.
        left.retain(|(_, to)| targets.contains(to));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "a circle among {left:?}");
}

#[test]
fn unsafe_and_foreign_libraries_stay_in_their_rooms() {
    for (file, text) in files("src") {
        let code = shipped(&text);
        let uses_unsafe = code.contains("unsafe ");
        assert!(!uses_unsafe || UNSAFE.contains(&file.as_str()), "{file} has unsafe code");
        if uses_unsafe {
            let blocks = code.matches("unsafe {").count() + code.matches("unsafe impl").count();
            assert!(text.matches("// SAFETY:").count() >= blocks, "{file}: every unsafe block says why it is sound");
        }
        for (library, door) in DOORS {
            assert!(!code.contains(library) || file.starts_with(door), "{file} names {library}; only {door} may");
        }
    }
}

/// The standard library's printing macros in a text; they panic where nobody reads.
fn printing(text: &str) -> Vec<&'static str> {
    // `println!` and `eprintln!` hold each other's names.
    ["print!(", "println!("].into_iter().filter(|word| text.contains(word)).collect()
}

#[test]
fn nothing_prints_past_terminal_rs() {
    for (file, text) in files("src") {
        let found = printing(&shipped(&text));
        assert!(found.is_empty(), "{file} has {found:?}: it panics where nobody reads; terminal.rs writes");
    }
    // Control: each of the four is noticed.
    for word in ["print", "println", "eprint", "eprintln"] {
        assert_eq!(printing(&format!("{word}!(\"x\")")).len(), 1, "{word}");
    }
}

/// Where a text chooses by device.
fn device_forks(text: &str) -> Vec<&'static str> {
    let forks = ["cpu_kind", "== Device::Cpu", "!= Device::Cpu", "Device::Cpu =>", "Device::Cuda(", "is_cuda()"];
    forks.into_iter().filter(|fork| text.contains(fork)).collect()
}

#[test]
fn what_is_computed_is_chosen_in_one_place() {
    for (file, text) in files("src") {
        let found = device_forks(&shipped(&text));
        let may = ASKS_FOR_DEVICE.iter().any(|place| file.starts_with(place));
        assert!(found.is_empty() || may, "{file} has {found:?}: a method of `Ops` decides that");
    }
    // No room keeps an allowance that it does not need.
    for place in ASKS_FOR_DEVICE {
        let used =
            files("src").iter().any(|(file, text)| file.starts_with(place) && !device_forks(&shipped(text)).is_empty());
        assert!(used, "{place} asks for no device: take it off the list");
    }
    // Nor does anything ask which implementation it has.
    let text = std::fs::read_to_string(root().join("src/ops/mod.rs")).unwrap();
    assert!(!["Any", "downcast", "fn name", "fn device", "fn is_"].iter().any(|word| text.contains(word)));
    // Control: a fork is noticed.
    assert_eq!(device_forks("if x.device() == Device::Cpu {"), ["== Device::Cpu"]);
}

#[test]
fn library_code_has_no_panics() {
    for (file, text) in files("src") {
        let code = shipped(&text);
        for word in [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "unreachable!(", "dbg!("] {
            assert!(!code.contains(word), "{file} has {word}");
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    for folder in ["src", "tests", "benches"] {
        for (file, text) in files(folder) {
            let lines = text.lines().count();
            assert!(lines <= LONGEST, "{folder}/{file} has {lines} lines: split it along a real seam");
            assert!(text.starts_with("//!"), "{folder}/{file} does not say what it is for");
        }
    }
}
