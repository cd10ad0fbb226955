//! Decides which attention goes to the library, and makes its index plan: once for a micro-batch, shared by all blocks.
//!
//! Every suffix is a run. Its keys are the rows of the prefix and its own. Its queries are its own rows; those of the first suffix
//! include the prefix. Queries stay in packed order. Where some prefix has two suffixes or more, keys are gathered:
//! `[prefix + first | prefix + second | ...]`. Otherwise they stay in packed order too.
//!
//! Not here: the calls (`attention.rs`).
//!
//! Legend: T rows of the micro-batch, K gathered rows, S shared ones: rows of prefixes with two suffixes or more.

use super::library::{Library, VarlenCall};
use crate::packing::{AttentionRules, Group, HeadCounts};
use crate::tensor::on_device;
use std::cmp::Reverse;
use tch::{Device, Kind, Tensor};

/// Largest head width of flash attention, forward and backward.
const WIDEST: usize = 256;
/// Head widths that are no multiple of this would need padding.
const LANES: usize = 8;

/// Whether attention of this kind, with these heads and rules, goes to the library. The plain formulas compute the rest: capped
/// scores, heads wider than 256 or of unaligned width, other kinds, and a scale that is not positive.
pub(crate) fn takes(library: &impl Library, kind: Kind, heads: HeadCounts, rules: &AttentionRules) -> bool {
    let AttentionRules { scale, window: _, soft_cap } = rules;
    library.attends(kind)
        && soft_cap.is_none()
        && *scale > 0.0
        && heads.width <= WIDEST
        && heads.width.is_multiple_of(LANES)
}

/// The plan of a micro-batch.
pub(crate) struct VarlenPlan {
    /// T.
    pub(crate) rows: i64,
    /// The call.
    pub(crate) call: VarlenCall,
    /// How keys are gathered; none if they stay in packed order.
    pub(crate) gathered: Option<Gathered>,
}

/// The gathered keys; indices are i64 on the device.
pub(crate) struct Gathered {
    /// `[K]`: the packed row of each gathered one.
    pub(crate) keys: Tensor,
    /// Where the shared rows are among the gathered ones: `[S]` for the first suffixes, then an entry for the second ones, and so
    /// on. Rows with the most suffixes come first in each, so an entry has the first of those in the entry before.
    pub(crate) copies: Vec<Tensor>,
    /// `[T]`: the place of each packed row in the gathered ones followed by the shared ones.
    pub(crate) of_row: Tensor,
}

/// The numbers of a plan.
#[derive(Debug, Default, PartialEq)]
struct Numbers {
    /// Where runs of queries and of keys start and end.
    bounds: [Vec<i32>; 2],
    longest: [usize; 2],
    keys: Vec<i64>,
    copies: Vec<Vec<i64>>,
    of_row: Vec<i64>,
}

impl Numbers {
    /// None if the groups are not consecutive from the first row on, or if i32 cannot count the rows.
    fn of(groups: &[Group]) -> Option<Self> {
        let mut it = Self { bounds: [vec![0], vec![0]], ..Self::default() };
        for group in groups {
            if group.start != it.of_row.len() {
                return None;
            }
            let mut row = group.start;
            for (number, &suffix) in group.suffixes.iter().enumerate() {
                let before = it.keys.len();
                if number > 0 {
                    it.keys.extend((group.start..group.start + group.prefix).map(|row| row as i64));
                }
                let own = row..row + suffix + if number == 0 { group.prefix } else { 0 };
                it.of_row.extend((it.keys.len()..it.keys.len() + own.len()).map(|place| place as i64));
                it.keys.extend(own.clone().map(|row| row as i64));
                for (longest, length) in it.longest.iter_mut().zip([own.len(), it.keys.len() - before]) {
                    *longest = length.max(*longest);
                }
                for (bounds, end) in it.bounds.iter_mut().zip([own.end, it.keys.len()]) {
                    bounds.push(i32::try_from(end).ok()?);
                }
                row = own.end;
            }
        }
        it.share(groups);
        (!it.keys.is_empty()).then_some(it)
    }

    /// Lists the copies of shared rows, and points their rows to the sums.
    fn share(&mut self, groups: &[Group]) {
        let mut runs = 0;
        let mut shared = Vec::new();
        for group in groups {
            if group.suffixes.len() > 1 && group.prefix > 0 {
                shared.push((runs, group));
            }
            runs += group.suffixes.len();
        }
        shared.sort_by_key(|(_, group)| Reverse(group.suffixes.len()));
        self.copies.resize(shared.first().map_or(0, |(_, group)| group.suffixes.len()), Vec::new());
        let mut sum = self.keys.len() as i64;
        for (run, group) in shared {
            for (copies, start) in self.copies.iter_mut().zip(&self.bounds[1][run..run + group.suffixes.len()]) {
                copies.extend((0..group.prefix as i64).map(|row| i64::from(*start) + row));
            }
            for place in &mut self.of_row[group.start..group.start + group.prefix] {
                *place = sum;
                sum += 1;
            }
        }
    }
}

impl VarlenPlan {
    /// None if the groups are not consecutive from the first row on, or if i32 cannot count the rows.
    pub(crate) fn of(groups: &[Group], rules: &AttentionRules, device: Device) -> Option<Self> {
        let numbers = Numbers::of(groups)?;
        let [longest_query, longest_key] = numbers.longest.map(|length| length as i64);
        // Two copies to the device, cut into parts there.
        let bounds = on_device(&numbers.bounds.concat(), device);
        let runs = numbers.bounds[0].len() as i64;
        let window = rules.window.map(|window| window as i64);
        let call = VarlenCall {
            queries: bounds.narrow(0, 0, runs),
            keys: bounds.narrow(0, runs, runs),
            // If no run has two queries, flash attention takes another path, which ignores the given output.
            longest: [longest_query.max(2), longest_key],
            scale: rules.scale,
            before: window.filter(|window| *window < longest_key).map(|window| window - 1),
        };
        let rows = numbers.of_row.len() as i64;
        let gathered = (numbers.keys.len() > numbers.of_row.len()).then(|| Gathered::of(numbers, device));
        Some(Self { rows, call, gathered })
    }
}

impl Gathered {
    fn of(Numbers { keys, copies, of_row, .. }: Numbers, device: Device) -> Self {
        let mut numbers = [keys.as_slice(), &of_row].concat();
        numbers.extend(copies.iter().flatten());
        let (all, mut start) = (on_device(&numbers, device), 0);
        let mut part = |of: &[i64]| {
            let part = all.narrow(0, start, of.len() as i64);
            start += of.len() as i64;
            part
        };
        let (keys, of_row) = (part(&keys), part(&of_row));
        let copies = copies.iter().map(|places| part(places)).collect();
        Self { keys, copies, of_row }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Libtorch, Plain};
    use super::*;

    const HEADS: HeadCounts = HeadCounts { query: 4, key: 2, width: 64 };

    fn group(start: usize, prefix: usize, suffixes: &[usize]) -> Group {
        Group { start, prefix, suffixes: suffixes.to_vec() }
    }

    #[test]
    fn a_plan_of_a_pair_a_lone_answer_and_three_answers() {
        let groups = [group(0, 2, &[1, 2]), group(5, 1, &[1]), group(7, 1, &[1, 1, 2])];
        let numbers = Numbers::of(&groups).unwrap();
        assert_eq!(numbers.bounds, [vec![0, 3, 5, 7, 9, 10, 12], vec![0, 3, 7, 9, 11, 13, 16]]);
        assert_eq!(numbers.longest, [3, 4]);
        assert_eq!(numbers.keys, [0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8, 7, 9, 7, 10, 11]);
        // Rows of the prompt with three answers come first, as they are in every entry.
        assert_eq!(numbers.copies, [vec![9, 0, 1], vec![11, 3, 4], vec![13]]);
        assert_eq!(numbers.of_row, [17, 18, 2, 5, 6, 7, 8, 16, 10, 12, 14, 15]);
        // Every gathered key is the only one of its row, or is listed once among the copies.
        let alone = numbers.of_row.iter().filter(|place| **place < 16);
        let mut places: Vec<i64> = alone.chain(numbers.copies.iter().flatten()).copied().collect();
        places.sort_unstable();
        assert_eq!(places, (0..16).collect::<Vec<i64>>());
    }

    #[test]
    fn keys_without_a_shared_prefix_are_not_gathered() {
        let rules = AttentionRules::plain(64);
        let lone = |groups: &[Group]| VarlenPlan::of(groups, &rules, Device::Cpu).unwrap().gathered.is_none();
        assert!(lone(&[group(0, 3, &[2]), group(5, 0, &[2, 3])]));
        assert!(!lone(&[group(0, 3, &[2]), group(5, 1, &[2, 3])]), "the control");
    }

    #[test]
    fn a_window_counts_the_keys_before_a_query_and_is_left_out_if_it_hides_nothing() {
        let groups = [group(0, 2, &[1, 2])];
        let before = |window| {
            let rules = AttentionRules { window, ..AttentionRules::plain(64) };
            VarlenPlan::of(&groups, &rules, Device::Cpu).unwrap().call.before
        };
        assert_eq!([None, Some(5), Some(4), Some(3), Some(1)].map(before), [None, None, None, Some(2), Some(0)]);
    }

    #[test]
    fn a_run_of_single_queries_is_declared_as_two() {
        let plan = VarlenPlan::of(&[group(0, 0, &[1, 1])], &AttentionRules::plain(64), Device::Cpu).unwrap();
        assert_eq!(plan.call.longest, [2, 1]);
    }

    #[test]
    fn groups_with_gaps_have_no_plan() {
        assert_eq!(Numbers::of(&[group(0, 2, &[1]), group(4, 2, &[1])]), None);
        assert_eq!(Numbers::of(&[group(1, 2, &[1])]), None);
        assert_eq!(Numbers::of(&[]), None);
        assert!(Numbers::of(&[group(0, 2, &[1]), group(3, 2, &[1])]).is_some(), "the control");
    }

    #[test]
    fn attention_that_flash_attention_does_not_take_goes_to_the_formulas() {
        let rules = AttentionRules::plain(64);
        let takes = |kind, width, rules: AttentionRules| takes(&Libtorch, kind, HeadCounts { width, ..HEADS }, &rules);
        for width in [8, 64, 80, 96, 128, 256] {
            assert!(takes(Kind::BFloat16, width, rules), "{width}");
        }
        assert!(takes(Kind::BFloat16, 64, AttentionRules { window: Some(7), ..rules }));
        for width in [4, 12, 100, 264, 512] {
            assert!(!takes(Kind::BFloat16, width, rules), "{width}");
        }
        assert!(!takes(Kind::Float, 64, rules));
        assert!(!takes(Kind::BFloat16, 64, AttentionRules { soft_cap: Some(50.0), ..rules }));
        assert!(!takes(Kind::BFloat16, 64, AttentionRules { scale: 0.0, ..rules }));
        assert!(super::takes(&Plain, Kind::Float, HEADS, &rules), "the reference takes f32 too");
    }
}
