//! Each rank in turn has another config, other data or another model than the rest: one error names it, and nothing is
//! written. Not here: every key and file that is compared (`runs/ranks.rs`).

use crate::job;
use crate::run::{finish, nothing_is_left};
use crate::tiny::{Workspace, with_config};
use std::path::Path;

const RANKS: usize = 3;
const PROGRAM: &str = env!("CARGO_BIN_EXE_haf-dist");

/// What the odd rank has, and what is said of it.
enum Odd {
    Key(&'static str, &'static str),
    File(&'static str, &'static str, &'static str, &'static str),
}

#[test]
fn whichever_rank_is_unlike_the_others_is_named_and_nothing_is_written() {
    let mut tried = 0;
    for odd in [
        Odd::Key("loss.beta=0.5", "loss.beta is "),
        Odd::Key("parallel.shard_optimizer=true", "parallel.shard_optimizer is "),
        Odd::File("run.toml", "keep = 5", "keep = 4", "checkpoint.keep is "),
        Odd::File("plain.jsonl", "What", "Which", "hash of the train pairs"),
        Odd::File("test.jsonl", "What", "Which", "hash of the test pairs"),
        Odd::File("model/config.json", "\"rms_norm_eps\": 1e-0", "\"rms_norm_eps\": 2e-0", "rms_norm_eps is "),
        Odd::File("model/tokenizer.json", "\"a\":9,", "\"a\":10,", "tokenizer.json is "),
    ] {
        for rank in 0..RANKS {
            let (usual, other) = (Workspace::new(), Workspace::new());
            let plain = with_config(&[], &[]);
            let (arguments, says) = match odd {
                Odd::Key(set, says) => (with_config(&[], &[set]), says),
                Odd::File(file, from, to, says) => {
                    let before = String::from_utf8(other.read(file)).unwrap();
                    let after = before.replace(from, to);
                    assert_ne!(before, after, "{file} has no {from}");
                    other.write(file, &after);
                    (plain.clone(), says)
                }
            };
            let before = [usual.content(), other.content()];
            let of = |number: usize| if number == rank { (&other, &arguments) } else { (&usual, &plain) };
            let mut command = job::mpirun(1, Path::new(PROGRAM));
            command.args(of(0).1).current_dir(of(0).0.path(""));
            for number in 1..RANKS {
                command.args([":", "-n", "1", "-wdir"]).arg(of(number).0.path("")).arg(PROGRAM).args(of(number).1);
            }
            let ended = finish(&usual, command, None);
            let what = format!("rank {rank}, {says}");
            ended.failed_well(&what);
            let named = format!("on rank {rank}");
            let said = ended.printed.contains("ranks differ") && ended.printed.contains(says);
            assert!(ended.code == 2 && said && ended.printed.contains(&named), "{what}: {}", ended.printed);
            assert!([usual.content(), other.content()] == before, "{what}: something was written");
            nothing_is_left(&usual, &what);
            tried += 1;
        }
    }
    println!("ranks that differ: {tried}");
}
