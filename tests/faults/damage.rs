//! Every file that is written, cut short or with a bit flipped: its readers refuse it, rebuild it or continue without it, and
//! say so; none gives another result.

use crate::run::{Outcome, finish, random, train, undisturbed, wanted};
use crate::tiny::Workspace;
use rand::RngExt;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Turns one bit of a file, or cuts it short.
fn damage(path: &Path, random: &mut impl RngExt) -> String {
    let mut content = fs::read(path).unwrap();
    if content.is_empty() {
        return String::new();
    }
    let at = random.random_range(0..content.len());
    let what = if random.random_bool(0.5) {
        content[at] ^= 1 << random.random_range(0..8);
        format!("{}: a bit of byte {at}", path.display())
    } else {
        content.truncate(at);
        format!("{}: cut to {at} bytes", path.display())
    };
    fs::write(path, content).unwrap();
    what
}

#[test]
fn damaged_checkpoints_are_skipped_by_resume_and_refused_by_all_others() {
    let (mut random, mut tried) = (random("checkpoints"), 0);
    let expected = undisturbed(1);
    let score = |workspace: &Workspace| {
        finish(workspace, workspace.command(1, &["score", "--checkpoint", "run/step-6", "--data", "test.jsonl"]), None)
    };
    let whole = Workspace::trained(1);
    let scored = score(&whole).stdout;
    let names: Vec<PathBuf> = files(&whole.path("run/step-6"));
    let names = names.iter().map(|path| path.strip_prefix(whole.path("")).unwrap().to_path_buf());
    for name in names {
        for _ in 0..wanted().unwrap_or(100).div_ceil(5) {
            let workspace = Workspace::trained(1);
            let what = damage(&workspace.path(&name), &mut random);
            let read = score(&workspace);
            if read.code == 0 {
                let harmless = ["masters", "moments", "files.json"].iter().any(|part| what.contains(part));
                assert!(harmless && read.stdout == scored, "{what}: {}", read.printed);
            } else {
                assert_eq!(read.code, 2, "{what}: {}", read.printed);
                read.failed_well(&what);
            }
            let resumed = train(&workspace, 1, &["--resume"], None);
            assert_eq!(resumed.code, 0, "{what}: {}", resumed.printed);
            assert!(resumed.printed.contains("which is damaged"), "{what}: {}", resumed.printed);
            Outcome::of(&workspace).expect(expected, &what);
            tried += 1;
        }
    }
    println!("damaged files of checkpoints: {tried}");
}

#[test]
fn damaged_caches_are_rebuilt() {
    let (mut random, mut tried) = (random("caches"), 0);
    let expected = undisturbed(1);
    for _ in 0..wanted().unwrap_or(100).div_ceil(5) {
        let workspace = Workspace::trained(1);
        for path in files(&workspace.path("cache")) {
            let what = damage(&path, &mut random);
            fs::remove_dir_all(workspace.path("run")).unwrap();
            let ended = train(&workspace, 1, &[], None);
            assert!(ended.code == 0 && ended.printed.contains("is made again"), "{what}: {}", ended.printed);
            Outcome::of(&workspace).expect(expected, &what);
            tried += 1;
        }
    }
    println!("damaged caches: {tried}");
}

#[test]
fn damaged_numbers_of_a_run_are_noticed() {
    let (mut random, mut tried) = (random("numbers"), 0);
    let expected = undisturbed(1);
    for _ in 0..wanted().unwrap_or(100) {
        let workspace = Workspace::trained(1);
        let what = damage(&workspace.path("run/metrics.jsonl"), &mut random);
        fs::remove_dir_all(workspace.path("run/step-6")).unwrap();
        let ended = train(&workspace, 1, &["--resume"], None);
        assert_eq!(ended.code, 0, "{what}: {}", ended.printed);
        let found = Outcome::of(&workspace);
        let noticed = ended.printed.contains("it differs from what the run had written");
        // A bit of the clock's numbers changes nothing that counts, nor does one behind the checkpoint.
        assert!(noticed || found.metrics == expected.metrics, "{what}: {}", ended.printed);
        Outcome { metrics: expected.metrics.clone(), ..found }.expect(expected, &what);

        let workspace = Workspace::trained(1);
        let what = damage(&workspace.path("run/test-pairs.jsonl"), &mut random);
        let compared = finish(&workspace, workspace.command(1, &["compare", "run", "run"]), None);
        compared.failed_well(&what);
        assert!(compared.code == 2 && compared.printed.contains("test-pairs.jsonl"), "{what}: {}", compared.printed);
        assert_eq!(train(&workspace, 1, &["--resume"], None).code, 0);
        Outcome::of(&workspace).expect(expected, &what);
        tried += 2;
    }
    println!("damaged metrics and test pairs: {tried}");
}
