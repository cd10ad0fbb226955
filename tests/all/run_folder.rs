//! Promises of a run's folder: which runs may start there, which may resume, and the disk space that is required.
//!
//! Not here: the checkpoints in it (`checkpoint.rs`), and whole runs (`runs/resuming.rs`).

use haf_dist::checkpoint;
use haf_dist::config::Config;
use haf_dist::train::checkpoints_at_once;
use std::fs;

#[test]
fn a_run_starts_only_where_none_is_and_resumes_only_where_one_is() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("deep/run");
    let refused = |resume: bool| {
        let error = checkpoint::start_run(&dir, resume).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.hint.unwrap()
    };
    assert!(refused(true).contains("leave --resume out"));
    assert!(!dir.exists());
    checkpoint::start_run(&dir, false).unwrap();
    assert!(dir.is_dir());

    fs::write(dir.join("mine.txt"), "mine").unwrap();
    checkpoint::start_run(&dir, false).unwrap();
    assert!(refused(true).contains("leave --resume out"));
    for sign in ["metrics.jsonl", "step-5", "step-5.partial"] {
        fs::create_dir(dir.join(sign)).unwrap();
        assert!(refused(false).contains("--resume"), "{sign}");
        assert!(dir.join(sign).exists());
        checkpoint::start_run(&dir, true).unwrap();
        let _ = fs::remove_dir(dir.join(sign));
    }
    assert_eq!(fs::read_to_string(dir.join("mine.txt")).unwrap(), "mine");
    assert_eq!(checkpoint::start_run(&dir.join("mine.txt"), false).unwrap_err().exit_code(), 2);
}

#[test]
fn a_runs_folder_belongs_to_one_process_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("run");
    let claim = checkpoint::start_run(&dir, false).unwrap();
    fs::create_dir(dir.join("step-5.partial")).unwrap();
    for resume in [false, true] {
        if !resume {
            fs::rename(dir.join("step-5.partial"), dir.join("other")).unwrap();
        }
        let error = checkpoint::start_run(&dir, resume).unwrap_err();
        assert!(error.exit_code() == 2 && error.message.contains("another run is writing into"), "{error}");
        if !resume {
            fs::rename(dir.join("other"), dir.join("step-5.partial")).unwrap();
        }
        assert!(dir.join("step-5.partial").exists(), "what the other is writing stays");
    }
    drop(claim);
    checkpoint::start_run(&dir, true).unwrap();
    assert!(!dir.join("step-5.partial").exists());
}

#[test]
fn disk_space_is_required_for_no_more_checkpoints_than_there_will_be() {
    let config = |keys: &str| {
        let text = format!("model.path = 'm'\ndata.train = [{{ path = 'p' }}]\noutput.dir = 'run'\n{keys}");
        Config::parse("test", &text, &[]).unwrap()
    };
    let at_once = |keys: &str, total: usize| checkpoints_at_once(&config(keys), total);
    assert_eq!(at_once("checkpoint = { every = 0, keep = 1 }", 300), 1);
    assert_eq!(at_once("checkpoint = { every = 100, keep = 1 }", 300), 2);
    assert_eq!(at_once("data.dev = [{ path = 'd' }]\ncheckpoint = { every = 100, keep = 1 }", 300), 3);
    assert_eq!(at_once("data.dev = [{ path = 'd' }]\ncheckpoint = { every = 100, keep = 1 }", 101), 2);
    assert_eq!(at_once("data.dev = [{ path = 'd' }]\ncheckpoint = { every = 1, keep = 3 }", 300), 5);
}
