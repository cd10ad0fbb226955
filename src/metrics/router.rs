//! How evenly the routers of a model with experts share out tokens in a step, as written to `metrics.jsonl`.
//!
//! Not here: the loss that balances them (`model/balance.rs`).

use serde::Serialize;

/// Figures for all blocks in one step: the names are an interface. A sequence is a prompt with one answer: a pair's prompt counts
/// twice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouterMetrics {
    /// Mean balance loss per sequence and block; 1 if all experts are used equally. Null if `loss.router_balance` is 0.
    pub balance: Option<f64>,
    /// Tokens of the busiest expert, as a multiple of an even share; the largest of all blocks.
    pub load_max: f64,
    /// The same for the expert with the fewest tokens; the smallest of all blocks.
    pub load_min: f64,
    /// Entropy of the experts' shares of tokens, divided by that of even shares; mean of all blocks.
    pub(crate) entropy: f64,
    /// Number of experts, in all blocks, that got no token.
    pub(crate) idle: usize,
    /// Those experts: (block, expert).
    #[serde(skip)]
    pub(crate) idle_experts: Vec<(usize, usize)>,
}

impl RouterMetrics {
    /// From the tokens of each expert, block after block in the order of `numbers`; all blocks have equally many experts.
    pub(crate) fn of(load: &[f64], numbers: &[usize], balance: Option<f64>) -> Self {
        let experts = (load.len() / numbers.len().max(1)).max(1);
        let blocks = load.chunks(experts);
        let (mut most, mut least, mut entropies) = (0.0f64, f64::INFINITY, Vec::new());
        for block in blocks.clone() {
            let all = block.iter().sum::<f64>().max(1.0);
            let shares = block.iter().map(|tokens| tokens / all);
            let entropy: f64 = shares.clone().filter(|share| *share > 0.0).map(|share| -share * share.ln()).sum();
            entropies.push(if experts > 1 { entropy / (experts as f64).ln() } else { 1.0 });
            for share in shares {
                (most, least) = (most.max(share * experts as f64), least.min(share * experts as f64));
            }
        }
        let idle = |(block, load): (&usize, &[f64])| {
            let idle: Vec<_> = load.iter().enumerate().filter(|(_, tokens)| **tokens == 0.0).collect();
            idle.into_iter().map(|(expert, _)| (*block, expert)).collect::<Vec<_>>()
        };
        let idle_experts: Vec<(usize, usize)> = numbers.iter().zip(blocks).flat_map(idle).collect();
        Self {
            balance,
            load_max: most,
            load_min: least,
            entropy: entropies.iter().sum::<f64>() / entropies.len().max(1) as f64,
            idle: idle_experts.len(),
            idle_experts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_multiples_of_an_even_share() {
        let even = RouterMetrics::of(&[3.0; 8], &[0, 1], Some(1.0));
        assert!((even.load_max - 1.0).abs() < 1e-12 && (even.load_min - 1.0).abs() < 1e-12, "{even:?}");
        assert!((even.entropy - 1.0).abs() < 1e-12 && even.idle == 0, "{even:?}");
        let uneven = RouterMetrics::of(&[3.0, 3.0, 3.0, 3.0, 6.0, 0.0, 6.0, 0.0], &[0, 2], None);
        assert_eq!((uneven.load_max, uneven.load_min, uneven.idle), (2.0, 0.0, 2));
        assert_eq!(uneven.idle_experts, [(2, 1), (2, 3)]);
        assert!((uneven.entropy - 0.75).abs() < 1e-12, "{uneven:?}");
    }
}
