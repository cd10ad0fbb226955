//! The assumptions about the device behind a prediction, in words.
//!
//! Not here: assumptions about the data (`commands/plan/lengths.rs`).

use super::Job;
use super::hardware::{BANDWIDTH_SHARE, Hardware, RESERVE};
use super::time::launches;

/// One sentence per assumption, for `ranks` ranks.
pub(crate) fn assumptions(job: &Job, hardware: &Hardware, ranks: usize) -> Vec<String> {
    let device = if hardware.cpu { "rank" } else { "GPU" };
    let mut sentences = vec![
        format!(
            "a {device} computes at {:.0}% of {} TFLOP/s and reads its memory at {:.0}% of {:.0} GB/s",
            100.0 * hardware.attainable,
            hardware.peak / 1e12,
            100.0 * BANDWIDTH_SHARE,
            hardware.memory_bandwidth / 1e9
        ),
        format!(
            "links reach {:.0}% of {:.0} GB/s within a node of {} and of {} GB/s a {device} between nodes, one direction",
            100.0 * BANDWIDTH_SHARE,
            hardware.link / 1e9,
            hardware.per_node,
            hardware.network / 1e9
        ),
        format!("{:.0}% of the memory stays free", 100.0 * RESERVE),
    ];
    if hardware.cpu {
        sentences.push("ranks share this computer's memory, and reductions take the cores that would compute".into());
    } else {
        let [forward, backward] = launches(job, 1.0);
        sentences.push(format!(
            "kernels start {:.0} us apart at best, {forward:.0} in a block's forward pass and {backward:.0} in its backward \
             pass{}",
            1e6 * hardware.launch,
            if launches(job, 2.0) == [forward, backward] { "" } else { " for one pair, more for several" }
        ));
    }
    if !hardware.cpu && ranks > 1 {
        sentences.push("several ranks on GPUs reduce gradients through NCCL, if libnccl is found".into());
    }
    sentences
}
