//! Reads the shim's record of calls: does every collective wait for the computation that was there when it was submitted,
//! does the computation wait for every collective's end, and does the host wait for the device in the middle of a step?

use std::collections::{HashMap, HashSet};

/// The number of collectives in the record; an error says which wait is missing.
pub fn check(record: &str) -> Result<usize, String> {
    let calls: Vec<Vec<&str>> = record.lines().map(|line| line.split(' ').collect()).collect();
    // Where each event was last recorded: thread and stream. Taken out by the wait for it.
    let mut recorded: HashMap<&str, (&str, &str)> = HashMap::new();
    // Ends of collectives that no computation has waited for yet.
    let mut unseen: HashSet<&str> = HashSet::new();
    let mut collectives = 0;
    // Threads whose stream of collectives has waited for a computation since its last end.
    let mut ordered: HashSet<&str> = HashSet::new();
    for (number, call) in calls.iter().enumerate() {
        let [thread, name, stream, about] = call[..] else { return Err(format!("line {number}: {call:?}")) };
        match (name, stream) {
            ("record", _) => {
                recorded.insert(about, (thread, stream));
                if stream != "0" {
                    unseen.insert(about);
                    ordered.remove(thread);
                }
            }
            ("wait", "0") => {
                unseen.remove(about);
            }
            ("wait", _) => match recorded.remove(about) {
                Some((other, "0")) if other != thread => drop(ordered.insert(thread)),
                other => return Err(format!("line {number}: a wait for what {other:?} recorded")),
            },
            ("collective", "0") => return Err(format!("line {number}: a collective on the computation's stream")),
            ("collective", _) => {
                collectives += 1;
                if !ordered.contains(thread) {
                    return Err(format!("line {number}: a collective that waited for no computation"));
                }
            }
            _ => {}
        }
    }
    match unseen.len() {
        0 => Ok(collectives),
        ends => Err(format!("{ends} ends of collectives that no computation waited for")),
    }
}

/// Calls between a step's first launch and its last that make the host wait for the device, and the number of steps.
pub fn waits(record: &str) -> (usize, Vec<String>) {
    let (mut steps, mut within, mut waits) = (0, false, Vec::new());
    for line in record.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [_, "mark", _, mark] => {
                within = mark == "1";
                steps += usize::from(within);
            }
            [_, "synchronize" | "read" | "copy", ..] if within => waits.push(line.to_string()),
            _ => {}
        }
    }
    (steps, waits)
}
