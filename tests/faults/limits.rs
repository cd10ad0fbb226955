//! Limits of the machine: open files, threads, memory, space in files and in /dev/shm; FIFOs in place of files; files that are
//! cut short while they are mapped.

use crate::job;
use crate::run::{
    Ended, Fault, Outcome, finish, nothing_is_left, random, recovered, recovers, recovers_with, sample, train, under,
    undisturbed, undisturbed_with, wanted,
};
use crate::tiny::{Workspace, rows, with_config};
use rand::RngExt;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_run_that_may_open_few_files_trains_or_says_so() {
    // Below that many MPI does not start, and says so in words of its own.
    let (mut refused, mut done) = (0, 0);
    for files in (6..=18).chain([20, 24, 32]) {
        let workspace = Workspace::new();
        let plain = workspace.command(1, &with_config(&[], &[]));
        let command = under(&format!("ulimit -n {files}"), &plain, &workspace);
        let ended = finish(&workspace, command, None);
        let what = format!("{files} files");
        assert!(!ended.printed.contains("panicked"), "{what}: {}", ended.printed);
        match ended.code {
            0 => done += 1,
            _ if ended.errors() > 0 => {
                refused += 1;
                ended.failed_well(&what);
            }
            _ => assert!(
                ended_by_a_library(&ended) || ended_by_mpi(&ended),
                "{what}: code {}: {}",
                ended.code,
                ended.printed
            ),
        }
        // What cannot be removed for want of files goes with the next start.
        recovers(&workspace, 1, &what);
    }
    println!("limits of open files: {done} trained, {refused} refused");
    assert!(done > 0 && refused > 0, "the limits are not around the border: {done} trained, {refused} refused");
}

#[test]
fn a_run_whose_files_may_not_grow_ends_with_one_error_and_resumes_to_the_same_bytes() {
    let (mut refused, mut done) = (0, 0);
    // In blocks of 1024 bytes: more than what is said takes, which goes to a file here. The largest file has about 150 KB.
    for blocks in [4, 8, 32, 64, 100, 1000] {
        let workspace = Workspace::new();
        let plain = workspace.command(1, &with_config(&[], &[]));
        let ended = finish(&workspace, under(&format!("ulimit -f {blocks}"), &plain, &workspace), None);
        let what = format!("files of at most {blocks} KB");
        match ended.code {
            0 => done += 1,
            _ => {
                refused += 1;
                ended.failed_well(&what);
            }
        }
        nothing_is_left(&workspace, &what);
        recovers(&workspace, 1, &what);
    }
    println!("limits of a file's size: {done} trained, {refused} refused");
    assert!(done > 0 && refused > 0, "the limits are not around the border: {done} trained, {refused} refused");
}

#[test]
fn a_run_whose_kth_allocation_fails_ends_with_one_error_and_resumes_to_the_same_bytes() {
    let (mut refused, mut done) = (0, 0);
    let counted = train(&Workspace::new(), 1, &[], Some(Fault::count("memory")));
    assert!(counted.code == 0 && !counted.noted.is_empty(), "{}", counted.printed);
    let samples = sample(counted.noted.len(), "memory");
    for &at in &samples {
        let workspace = Workspace::new();
        let ended = train(&workspace, 1, &[], Some(Fault { mode: "fail", at, ..Fault::count("memory") }));
        assert_eq!(ended.noted.len(), 1, "memory {at} was not asked for");
        let what = format!("block {at} of {}", counted.noted.len());
        match ended.code {
            0 => done += 1,
            _ => {
                refused += 1;
                ended.failed_well(&what);
                assert!(ended.code == 1 && ended.printed.contains("memory"), "{what}: {}", ended.printed);
            }
        }
        // It ends at once: what it leaves goes with the next start.
        recovers(&workspace, 1, &what);
    }
    println!("blocks of memory that are not there: {done} trained, {refused} refused, of {}", counted.noted.len());
}

#[test]
fn a_run_that_gets_little_memory_trains_or_ends_with_one_error() {
    let limited = |kilobytes: usize| {
        let workspace = Workspace::new();
        let plain = workspace.command(1, &with_config(&[], &[]));
        let ended = finish(&workspace, under(&format!("ulimit -v {kilobytes}"), &plain, &workspace), None);
        (workspace, ended)
    };
    // The border, by halves.
    let (mut little, mut enough) = (50_000, 16_000_000);
    while enough - little > 1000 {
        let middle = (little + enough) / 2;
        if limited(middle).1.code == 0 { enough = middle } else { little = middle }
    }
    let (mut random, mut refused, mut before) = (random("memory"), 0, 0);
    for number in 0..wanted().map_or(100, |count| 3 * count) {
        let kilobytes = enough - random.random_range(0..if number % 2 == 0 { 5_000 } else { 50_000 });
        let (workspace, ended) = limited(kilobytes);
        let what = format!("{kilobytes} KB of addresses, where {enough} are enough");
        if ended.code != 0 {
            if ended_by_a_library(&ended) {
                before += 1;
            } else {
                refused += 1;
                ended.failed_well(&what);
            }
        }
        // It ends at once: what it leaves goes with the next start. Up to rounding: the matrix products under libtorch take
        // another way where their buffers are not to be had.
        recovered(&workspace, 1, &[], &what).expect_close(undisturbed(1), &what);
        nothing_is_left(&workspace, &what);
    }
    println!("limits of memory below {enough} KB: {refused} refused, {before} by a library");
    assert!(refused > 0, "no limit was felt");
}

/// Whether a library ended the process by itself: the loader, C++ and Rust before the program starts, glibc, OpenMP, which exits
/// where it gets no thread, oneDNN, which crashes.
fn ended_by_a_library(ended: &Ended) -> bool {
    let printed = &ended.printed;
    printed.contains("shared libraries")
        || printed.starts_with("terminate called after")
        || printed.contains("libgomp: ")
        || printed.contains("Fatal glibc error: ")
        || printed.contains("failed to allocate an alternative stack")
        || (ended.code == -1
            && ended.errors() == 1
            && printed.contains("a library or this program has crashed (SIGSEGV"))
}

/// Whether Open MPI did not start, and said so.
fn ended_by_mpi(ended: &Ended) -> bool {
    ["ORTE_ERROR_LOG", "opal_init failed", "An error occurred in MPI_Init"]
        .iter()
        .any(|words| ended.printed.contains(words))
}

/// Runs a command with at most so many KB of addresses.
fn with_addresses(workspace: &Workspace, arguments: &[&str], kilobytes: usize) -> Ended {
    finish(workspace, under(&format!("ulimit -v {kilobytes}"), &workspace.command(1, arguments), workspace), None)
}

fn clear_unfinished(workspace: &Workspace) {
    for entry in fs::read_dir(workspace.path("")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".unfinished-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

/// Every path to libtorch's memory apart from a run's: loading, scoring, reference log-probs, merging and whole steps.
#[test]
fn a_command_that_gets_little_memory_works_or_ends_with_one_error_that_says_what_to_do() {
    let workspace = Workspace::trained(1);
    workspace.write("pairs.jsonl", &rows(0, 24));
    // With two threads OpenMP would exit in its own words, for want of the second one's stack.
    let from = ["--checkpoint", "run/step-6", "--data", "test.jsonl", "--threads", "1"];
    let budget = "lower --tokens-per-micro-batch";
    let bench = ["bench", "--model", "model", "--pairs", "pairs.jsonl", "--count", "8", "--threads", "1"];
    let commands: [(&str, Vec<&str>); 7] = [
        (budget, [&["eval", "--json"], &from[..]].concat()),
        (budget, [&["score"], &from[..]].concat()),
        (budget, [&["score", "--tokens"], &from[..]].concat()),
        (budget, bench.to_vec()),
        ("the model must fit", vec!["verify", "run/step-6", "--threads", "1"]),
        ("the model must fit", vec!["export", "run/step-6", "exported"]),
        (
            "lower train.tokens_per_micro_batch",
            with_config(&["prepare"], &["data.cache_dir=fresh", "parallel.threads=1"]),
        ),
    ];
    for (hint, arguments) in commands {
        let works = |kilobytes| {
            let ended = with_addresses(&workspace, &arguments, kilobytes);
            // A library that ends the process leaves what there is to the next command.
            if ended_by_a_library(&ended) {
                clear_unfinished(&workspace);
            } else {
                nothing_is_left(
                    &workspace,
                    &format!("{arguments:?} with {kilobytes} KB of addresses: {}", ended.printed),
                );
            }
            for made in ["exported", "fresh"] {
                let _ = fs::remove_dir_all(workspace.path(made));
            }
            ended
        };
        let (mut little, mut enough) = (50_000, 16_000_000);
        assert_eq!(works(enough).code, 0, "{arguments:?}: {}", works(enough).printed);
        while enough - little > 1000 {
            let middle = (little + enough) / 2;
            if works(middle).code == 0 { enough = middle } else { little = middle }
        }
        let (mut random, mut refused, mut own) = (random(arguments[0]), 0, 0);
        for number in 0..wanted().map_or(100, |count| 4 * count) {
            let kilobytes = enough - random.random_range(0..if number % 2 == 0 { 5_000 } else { 100_000 });
            let ended = works(kilobytes);
            let what = format!("{arguments:?} with {kilobytes} KB of addresses, where {enough} are enough");
            if ended.code == 0 || ended_by_a_library(&ended) {
                continue;
            }
            ended.failed_well(&what);
            if ["out of memory", "want of memory"].iter().any(|words| ended.printed.contains(words)) {
                refused += 1;
                own += usize::from(ended.printed.contains(hint));
                assert!(
                    ended.code == 1 && ended.printed.contains("give the job more memory"),
                    "{what}: {}",
                    ended.printed
                );
            }
        }
        println!("{}: {refused} refused below {enough} KB", arguments[0]);
        // Until the command is known, the hint names none of its keys.
        assert!(own > 0, "{arguments:?}: no limit was felt, or none with the command's own hint");
    }
}

/// A /dev with all that ranks need but shm.
const WITHOUT_SHM: &str = "mount -t tmpfs none /mnt && for name in null zero full random urandom tty; do \
    touch /mnt/$name && mount --bind /dev/$name /mnt/$name || exit; done && mkdir /mnt/pts && \
    mount --rbind /dev/pts /mnt/pts && ln -s pts/ptmx /mnt/ptmx && ln -s /proc/self/fd /mnt/fd && \
    mount --move /mnt /dev && ! test -e /dev/shm";

#[test]
fn ranks_train_where_dev_shm_is_full_or_absent() {
    let expected = undisturbed(2);
    // A mount of its own, in a namespace of its own.
    for (name, limits) in [
        (
            "full",
            "mount -t tmpfs -o size=4k none /dev/shm && (head -c 8192 /dev/zero > /dev/shm/full; test -s /dev/shm/full)",
        ),
        ("read-only", "mount -t tmpfs -o ro none /dev/shm && ! touch /dev/shm/x"),
        ("absent", WITHOUT_SHM),
    ] {
        let workspace = Workspace::new();
        let plain = workspace.command(2, &with_config(&[], &[]));
        let inner = under(&format!("({limits}) 2>/dev/null || exit 99"), &plain, &workspace);
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(workspace.path(""));
        for (name, value) in inner.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        let ended = finish(&workspace, command, None);
        println!("/dev/shm {name}: code {}", ended.code);
        assert_ne!(ended.code, 99, "the injection was not reached: {}", ended.printed);
        match ended.code {
            0 => Outcome::of(&workspace).expect(expected, name),
            _ => ended.failed_well(name),
        }
        recovers(&workspace, 2, name);
    }
}

#[test]
fn a_run_whose_kth_thread_does_not_start_ends_with_one_error_and_resumes_to_the_same_bytes() {
    let set = ["parallel.threads=2"];
    let counted = train(&Workspace::new(), 1, &set, Some(Fault::count("thread")));
    assert_eq!(counted.code, 0, "{}", counted.printed);
    let samples = sample(counted.noted.len(), "threads");
    let mut stood = 0;
    for &at in &samples {
        let workspace = Workspace::new();
        let ended = train(&workspace, 1, &set, Some(Fault { mode: "fail", at, ..Fault::count("thread") }));
        assert_eq!(ended.noted.len(), 1, "thread {at} was not asked for");
        let what = format!("thread {at} of {}", counted.noted.len());
        match ended.code {
            0 => {
                stood += 1;
                Outcome::of(&workspace).expect(undisturbed_with(1, &set), &what);
            }
            // What OpenMP's own end leaves goes with the next start.
            _ if ended_by_a_library(&ended) => {}
            _ => ended.failed_well(&what),
        }
        if !ended_by_a_library(&ended) {
            nothing_is_left(&workspace, &what);
        }
        recovers_with(&workspace, 1, &set, &what);
    }
    println!("threads that do not start: {} of {}, stood {stood}", samples.len(), counted.noted.len());
}

#[test]
fn a_fifo_in_place_of_a_file_is_one_error_that_names_it() {
    for file in [
        "run.toml",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/chat_template.jinja",
        "model/additional_chat_templates/tool.jinja",
        "plain.jsonl",
        "dev.jsonl",
    ] {
        let workspace = Workspace::new();
        fs::create_dir(workspace.path("model/additional_chat_templates")).unwrap();
        workspace.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
        let _ = fs::remove_file(workspace.path(file));
        assert!(Command::new("mkfifo").arg(workspace.path(file)).status().unwrap().success());
        let ended = train(&workspace, 1, &[], None);
        ended.failed_well(file);
        assert!(ended.code == 2 && ended.printed.contains(file), "{file}: {}", ended.printed);
    }
    // A cache is nobody's input: it is made again.
    let workspace = Workspace::trained(1);
    let caches: Vec<_> = fs::read_dir(workspace.path("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for cache in &caches {
        fs::remove_file(cache).unwrap();
        assert!(Command::new("mkfifo").arg(cache).status().unwrap().success());
    }
    fs::remove_dir_all(workspace.path("run")).unwrap();
    assert_eq!(train(&workspace, 1, &[], None).code, 0);
    Outcome::of(&workspace).expect(undisturbed(1), "caches that were FIFOs");
}

#[test]
fn a_cache_that_is_cut_short_under_a_run_is_named_and_the_run_resumes_to_the_same_bytes() {
    for ranks in [1, 2] {
        let workspace = Workspace::new();
        let endless = ["train.schedule=constant", "train.steps=1000000", "checkpoint.every=0", "eval.every=0"];
        let job = workspace.start(ranks, "cut", &with_config(&[], &endless));
        let started = Instant::now();
        while !workspace.path("run/metrics.jsonl").exists() || workspace.read("run/metrics.jsonl").is_empty() {
            assert!(started.elapsed() < Duration::from_secs(60), "no first step");
            std::thread::sleep(Duration::from_millis(5));
        }
        for entry in fs::read_dir(workspace.path("cache")).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("pairs-") {
                fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
            }
        }
        let code = job::wait(job, Duration::from_secs(60)).expect("it goes on with a cut cache");
        let said = fs::read_to_string(workspace.log("cut", "err")).unwrap();
        for kind in ["out", "err"] {
            fs::remove_file(workspace.log("cut", kind)).unwrap();
        }
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("pairs-") && said.contains("was truncated while it was in use"), "{said}");
        fs::remove_dir_all(workspace.path("run")).unwrap();
        recovers(&workspace, ranks, "a cache that was cut short");
    }
}
