//! Renders a plan as text: memory by part, one step, two tables of scaling, the assumptions.

use super::Plan;
use crate::plan::memory::Memory;
use crate::plan::scaling::Row;
use crate::terminal::Table;

/// The whole text.
pub(crate) fn render(plan: &Plan) -> String {
    let [parameters, trained] = plan.parameters.map(|count| count as f64 / 1e6);
    let title = format!(
        "{} x {}, {} compute, {parameters:.1} M parameters ({trained:.1} M trained)",
        plan.ranks, plan.hardware.name, plan.dtype
    );
    let assumed: Vec<String> = plan.assumptions.iter().map(|line| format!("  - {line}")).collect();
    [
        title,
        memory(plan),
        stages(plan),
        step(plan),
        format!("weak scaling: {} pair(s) a rank", plan.weak.first().map_or(0, |row| row.pairs_per_step)),
        scaling(&plan.weak),
        format!("strong scaling: {} pair(s) a step", plan.step.pairs_per_step),
        scaling(&plan.strong),
        format!("assumed:\n{}", assumed.join("\n")),
    ]
    .join("\n\n")
}

fn memory(plan: &Plan) -> String {
    let (whole, shares) = (&plan.memory, &plan.memory_if_sharded);
    let mut table = table(&["memory of a rank", "GB", "GB, sharded (1)"]);
    let masters = if whole.masters == 0 { "masters (the weights themselves)" } else { "masters" };
    for (name, part) in [
        ("weights", (|memory| memory.weights) as fn(&Memory) -> usize),
        ("gradients", |memory| memory.gradients),
        (masters, |memory| memory.masters),
        ("moments", |memory| memory.moments),
        ("activations (2)", |memory| memory.activations),
        ("shared by blocks (2)", |memory| memory.block_workspace),
        ("heads (2)", |memory| memory.head_workspace),
        ("allocator slack", |memory| memory.slack),
        ("process, libraries", |memory| memory.base),
        ("update, or saving", |memory| memory.update_workspace.max(memory.saving)),
        ("at the worst moment", Memory::total),
    ] {
        table.row([name.to_string(), gigabytes(part(whole)), gigabytes(part(shares))]);
    }
    let verdict = if plan.fits { "fits" } else { "DOES NOT FIT" };
    let sharded = if plan.sharded { "is" } else { "is not" };
    format!(
        "{table}\n(1) with parallel.shard_optimizer = true, which {sharded} set: a rank's share of masters and moments\n\
         (2) for the largest micro-batch ({} tokens, {} pairs)\n\
         {verdict}: {} of {} GB",
        plan.largest.tokens,
        plan.largest.pairs,
        gigabytes(needed(plan)),
        gigabytes(plan.memory_usable as usize)
    )
}

/// Bytes that a rank needs with the job's config.
fn needed(plan: &Plan) -> usize {
    if plan.sharded { plan.memory_total_if_sharded } else { plan.memory_total }
}

fn stages(plan: &Plan) -> String {
    let header =
        ["shard_optimizer", "activation_checkpointing", "GB, loaded", "GB, in a step", "fits", "largest micro-batch"];
    let mut table = table(&header);
    let word = |on: bool| if on { "true" } else { "false" }.to_string();
    for stage in &plan.stages {
        table.row([
            word(stage.sharded),
            word(stage.checkpointing),
            gigabytes(stage.at_start),
            gigabytes(stage.in_a_step),
            if stage.fits { "yes" } else { "no" }.to_string(),
            match stage.largest_micro_batch {
                0 => "none".to_string(),
                tokens => format!("{tokens} tokens"),
            },
        ]);
    }
    format!("{table}\nmemory of a rank with other settings, and the largest micro-batch of such pairs that fits")
}

fn step(plan: &Plan) -> String {
    let Row { pairs_per_step, seconds, pairs_per_s, time, .. } = &plan.step;
    let mut table = table(&["a step", "ms", "share"]);
    for (name, part) in [
        ("compute", time.compute),
        ("communication, hidden", time.hidden),
        ("communication, exposed", time.exposed),
        ("update", time.update),
        ("small messages", time.control),
        ("in all, hidden not counted", *seconds),
    ] {
        table.row([name.to_string(), milliseconds(part), percent(part / seconds)]);
    }
    let useful = time.useful_flops / seconds;
    let run =
        plan.steps.map_or(String::new(), |steps| format!("; {steps} steps take {}", duration(steps as f64 * seconds)));
    format!(
        "{table}\n{pairs_per_step} pairs a step, {pairs_per_s:.2} pairs/s{run}\n\
         useful work {:.3} TFLOP/s a rank, {} of the peak",
        useful / 1e12,
        percent(useful / plan.hardware.peak)
    )
}

fn scaling(rows: &[Row]) -> String {
    let mut table =
        table(&["ranks", "pairs/step", "step ms", "communication ms", "exposed ms", "pairs/s", "efficiency"]);
    for row in rows {
        table.row([
            row.ranks.to_string(),
            row.pairs_per_step.to_string(),
            milliseconds(row.seconds),
            milliseconds(row.time.communication),
            milliseconds(row.time.exposed),
            format!("{:.1}", row.pairs_per_s),
            percent(row.efficiency),
        ]);
    }
    table.right([0]).to_string()
}

/// Names left-aligned, numbers right-aligned.
fn table(header: &[&str]) -> Table {
    Table::new(header.iter().copied()).right(1..header.len())
}

fn gigabytes(bytes: usize) -> String {
    format!("{:.2}", bytes as f64 / 1e9)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1}", 1e3 * seconds)
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}
