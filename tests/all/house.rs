//! Promise: the code keeps its structure. Imports go down only and in no circle, `unsafe` stays in its files, each foreign library
//! behind its one file, files are short and few in the root.
//!
//! Not here: what the compiler and clippy check (the lints in Cargo.toml: panics, printing, `unsafe` without a reason).

use haf_dist::ops::checked::Operation;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules by floor; a file's module is the first part of its path under src/.
///
/// `config` is a plain table of values that the losses and readers below read too, so it lies low.
const FLOORS: &[&[&str]] = &[
    &["error", "tensor", "files", "statistics", "packing", "memory", "crash", "panics", "terminal"],
    &["ops", "config", "comm", "logging", "safetensors_io"],
    &["model", "loss", "data", "hub"],
    &["engine", "update", "checkpoint", "metrics", "machine"],
    &["evaluate", "train", "plan", "launcher"],
    &["cli", "commands", "main", "bin", "lib"],
];

/// Imports within a floor: (from, to).
const WITHIN: &[(&str, &str)] = &[
    ("error", "memory"),
    ("error", "panics"),
    ("files", "error"),
    ("files", "memory"),
    ("files", "crash"),
    ("crash", "memory"),
    ("tensor", "error"),
    ("terminal", "error"),
    ("metrics", "checkpoint"),
    ("update", "engine"),
    ("train", "evaluate"),
    ("launcher", "train"),
    ("commands", "cli"),
    ("main", "cli"),
    ("main", "commands"),
    ("bin", "cli"),
    ("bin", "commands"),
];

/// Files that may hold `unsafe`, each for one reason: raw slices, memory maps, the allocator, crashes, ending an MPI process, memory that
/// processes share, the regex engine's bound, vector instructions and matrix tiles, malloc's settings, the CUDA driver, NCCL.
const UNSAFE: &[&str] = &[
    "tensor.rs",
    "files/map.rs",
    "memory.rs",
    "crash.rs",
    "comm/abort.rs",
    "comm/shared.rs",
    "comm/nccl/cuda.rs",
    "comm/nccl/group.rs",
    "ops/cpu/amx.rs",
    "ops/cpu/tile/mod.rs",
    "ops/cpu/weight_gradient.rs",
    "machine/cuda.rs",
    "machine/mod.rs",
];

/// How a crate or a call is named, and the only files or folders that may.
const DOORS: &[(&str, &[&str])] = &[
    ("use mpi::", &["comm/mpi.rs"]),
    ("use tokenizers::", &["data/tokenize"]),
    ("use parquet::", &["data/rows/parquet/"]),
    ("use hf_hub::", &["hub/client.rs"]),
    ("cudarc::", &["comm/nccl/"]),
    ("libloading::", &["comm/nccl/", "machine/cuda.rs"]),
    // libtorch warns of what tch passes; `internal_pin_memory` does the same.
    (".pin_memory(", &[]),
];

/// Where a file may ask which device it is on: where operations are chosen, memory is laid out or shared, or what a device needs
/// is predicted.
const ASKS_FOR_DEVICE: &[&str] = &["ops/", "machine/", "plan/", "tensor.rs", "comm/thread.rs"];

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
    floor.unwrap_or_else(|| panic!("module {module} has no floor: give it one in tests/all/house.rs"))
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
    assert_eq!(breaches("loss.rs", "use crate::train::Trainer;"), ["loss.rs imports train"]);
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

/// A file of `src/` as the path of its module.
fn module_path(file: &str) -> Vec<&str> {
    let path = file.strip_suffix(".rs").unwrap();
    path.strip_suffix("/mod").unwrap_or(path).split('/').collect()
}

/// Modules that a file of the module `from` names, by `use` or in an expression, as paths from the crate's root; longer than
/// the modules themselves where items are named. Names taken out of braces one level deep.
fn named_modules(from: &[&str], text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            if text[..at].ends_with("::") || text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let mut rest = &text[at..];
            let mut base: Vec<String> = from.iter().map(ToString::to_string).collect();
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            if let Some(after) = rest.strip_prefix("crate::") {
                base.clear();
                rest = after;
            }
            let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            let (head, tail) = rest.split_at(end);
            base.extend(head.split("::").filter(|name| !name.is_empty()).map(str::to_string));
            match tail.strip_prefix('{') {
                Some(group) => found.extend(group.split('}').next().unwrap().split(',').map(|name| {
                    let names = name.trim().split("::").map(str::to_string);
                    base.iter().cloned().chain(names).collect()
                })),
                None => found.push(base),
            }
        }
    }
    found
}

/// Imports between the entries of each folder, files and folders alike: folder -> (from, to). A folder's own `mod.rs`, which
/// joins its entries, is not among them.
fn imports_within_rooms(files: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<(String, String)>> {
    let known: BTreeSet<String> = files.keys().map(|file| module_path(file).join("::")).collect();
    let mut found: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for (file, text) in files {
        let from = module_path(file);
        for mut to in named_modules(&from, &shipped(text)) {
            while !to.is_empty() && !known.contains(&to.join("::")) {
                to.pop();
            }
            let shared = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
            if shared > 0 && shared < from.len() && shared < to.len() {
                let edge = (from[shared].to_string(), to[shared].clone());
                found.entry(from[..shared].join("/")).or_default().insert(edge);
            }
        }
    }
    found
}

/// What is left of imports when all that lead to no circle are taken away.
fn circle(imports: &BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    let mut left = imports.clone();
    loop {
        let importing: BTreeSet<String> = left.iter().map(|(from, _)| from.clone()).collect();
        let imported: BTreeSet<String> = left.iter().map(|(_, to)| to.clone()).collect();
        let before = left.len();
        left.retain(|(from, to)| importing.contains(to) && imported.contains(from));
        if left.len() == before {
            return left;
        }
    }
}

#[test]
fn no_room_imports_in_a_circle() {
    let files = files("src");
    for (room, imports) in imports_within_rooms(&files) {
        let left = circle(&imports);
        assert!(left.is_empty(), "src/{room}/ has a circle: {left:?}");
    }
    // Control: a circle is noticed, through braces and between folders too.
    let circular = [("a/x.rs", "use super::{y, z};"), ("a/y/mod.rs", "use crate::a::x::X;"), ("a/z.rs", "")];
    let circular = circular.map(|(file, text)| (file.to_string(), text.to_string())).into();
    assert_eq!(circle(&imports_within_rooms(&circular)["a"]).len(), 2);
}

#[test]
fn the_root_is_small_and_folders_have_one_convention() {
    let files = files("src");
    let root: Vec<&String> = files.keys().filter(|file| !file.contains('/')).collect();
    assert!(root.len() <= 10, "{root:?}");
    for file in files.keys().filter(|file| !file.ends_with("mod.rs")) {
        let folder = file.replace(".rs", "/");
        assert!(
            !files.keys().any(|other| other.starts_with(&folder)),
            "{file} is the root of {folder}: name it {folder}mod.rs"
        );
    }
}

#[test]
fn unsafe_and_foreign_libraries_stay_in_their_rooms() {
    let files = files("src");
    for (file, text) in &files {
        let code = shipped(text);
        let uses_unsafe = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word));
        assert_eq!(uses_unsafe, UNSAFE.contains(&file.as_str()), "{file} and the list of files with unsafe code");
        for (library, doors) in DOORS {
            let may = doors.iter().any(|door| file.starts_with(door));
            assert!(!code.contains(library) || may, "{file} names {library}; only {doors:?} may");
        }
    }
    // No import is allowed that nothing needs.
    for (from, to) in WITHIN {
        let used = files.iter().any(|(file, text)| module(file) == *from && imports(&shipped(text)).contains(*to));
        assert!(used, "{from} does not import {to}: take it off the list");
    }
}

/// Where a text chooses by device: it compares one, or asks a value whether it is one.
fn device_forks(text: &str) -> Vec<&'static str> {
    const FORKS: [&str; 13] = [
        "cpu_kind",
        "== Device::Cpu",
        "!= Device::Cpu",
        "Device::Cpu =>",
        "Device::Cuda(",
        "cuda_if_available",
        "is_cuda()",
        "is_cpu()",
        "on_cpu",
        "on_gpu",
        ".cpu",
        ".gpu ==",
        "hardware::CPU",
    ];
    FORKS.into_iter().filter(|fork| text.contains(fork)).collect()
}

#[test]
fn implementations_are_chosen_in_one_place() {
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
    assert_eq!(device_forks("let on_cpu = planning.gpu == hardware::CPU;"), ["on_cpu", ".gpu ==", "hardware::CPU"]);
    assert_eq!(device_forks("if hardware.cpu { \"rank\" } else { \"GPU\" }"), [".cpu"]);
}

/// A test that names a GPU itself would find none: it must load libtorch's part for GPUs first.
#[test]
fn tests_get_their_gpus_from_one_place() {
    let names_one = |text: &str| text.contains("Device::Cuda(") || text.contains("cuda_if_available");
    let files = files("tests");
    let naming: Vec<&str> = files.iter().filter(|(_, text)| names_one(text)).map(|(file, _)| file.as_str()).collect();
    assert_eq!(naming, ["all/device.rs", "all/house.rs"], "take it from `device::gpu`");
    assert!(files["all/device.rs"].contains("cuda::load()"));
}

/// Methods of a trait or of an implementation that stands alone in its file.
fn methods(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("    fn ")?.split('(').next()).collect()
}

#[test]
fn every_operation_is_compared_and_can_be_replaced_by_its_formula() {
    let text = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let (operations, checked) = (text("src/ops/mod.rs"), text("src/ops/checked/mod.rs"));
    let operations = operations.split("pub trait Ops").nth(1).unwrap().split("\n}\n").next().unwrap();
    let (_, forwarded) = checked.split_once("impl Ops for Checked {").unwrap();
    let (operations, forwarded) = (methods(operations), methods(forwarded));
    assert!(operations.contains("rms_norm") && operations.len() > 20, "{operations:?}");
    // One that is missing would be the formula on every device, in silence.
    assert_eq!(operations.difference(&forwarded).collect::<Vec<_>>(), Vec::<&&str>::new());
    // Attention's three methods are replaced together.
    let together = |name: &str| ["plan_attention", "attention_backward"].contains(&name);
    let replaced: BTreeSet<&str> = Operation::ALL.iter().map(|operation| operation.name()).collect();
    let alone: BTreeSet<&str> = operations.iter().copied().filter(|name| !together(name)).collect();
    assert_eq!(alone, replaced, "Operation::ALL has one entry a method");
    let compared =
        ["conformance", "attention", "experts", "update"].map(|file| text(&format!("tests/all/ops/{file}.rs")));
    let is_called = |name: &&&str| compared.iter().any(|text| text.contains(&format!("ops.{name}(")));
    let forgotten: Vec<_> = operations.iter().filter(|name| !is_called(name)).collect();
    assert!(forgotten.is_empty(), "tests/all/ops/ compares {forgotten:?} with nothing");
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
