//! Warnings about a run's data before training: answers that were cut, and prompts that are both in the training data and in
//! the dev or test data.
//!
//! Not here: the table of counts (`report.rs`), which shows everything and judges nothing.

use super::prepared::PreparedData;
use std::collections::HashSet;

/// Share of pairs with a cut answer from which there is a warning: the reward of such an answer is read where it was cut.
const MANY_CUT: f64 = 0.1;

/// A sentence for each warning. `others` are the dev and test splits, by name.
pub(crate) fn doubts(train: &PreparedData, others: &[(&str, &PreparedData)]) -> Vec<String> {
    let all = [("train", train)].into_iter().chain(others.iter().copied());
    let cut = all.filter_map(|(name, data)| {
        let counts = || data.report().sources.iter().map(|source| &source.counts);
        let (cut, kept): (usize, usize) = (counts().map(|c| c.answers_cut).sum(), counts().map(|c| c.kept).sum());
        (cut > 0 && cut as f64 >= MANY_CUT * kept as f64).then(|| {
            format!(
                "{cut} of {kept} {name} pairs have an answer that was truncated and lost its EOS, where the reward is read; \
                 raise data.max_length, or leave them out with data.truncation = \"drop\""
            )
        })
    });
    // The memory grows with the smaller splits, not with train.
    let asked: HashSet<u64> = others.iter().flat_map(|(_, data)| data.prompt_hashes()).copied().collect();
    let trained: HashSet<u64> = train.prompt_hashes().iter().copied().filter(|hash| asked.contains(hash)).collect();
    let seen = others.iter().filter_map(|(name, data)| {
        let seen = data.prompt_hashes().iter().filter(|hash| trained.contains(hash)).count();
        (seen > 0).then(|| {
            format!(
                "{seen} of {} {name} pairs have a prompt that train has too: their accuracy says little about new prompts",
                data.len()
            )
        })
    });
    cut.chain(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::AnswerSpan;
    use crate::data::prepared::LabeledPair;
    use crate::data::sequence::OwnedPair;

    /// Pairs given by their prompt's hash and whether an answer was cut.
    fn data(pairs: &[(u64, bool)]) -> PreparedData {
        let pair = |&(prompt_hash, answer_cut): &(u64, bool)| LabeledPair {
            pair: OwnedPair {
                prefix: 1,
                chosen: 1,
                rejected: 1,
                tokens: vec![1, 2, 3],
                spans: AnswerSpan::of_pair(1, 1, 1, 1),
                prompt_hash,
                prompt_cut: false,
                answer_cut,
                special_in_text: 0,
            },
            margin: 0.0,
            tied: false,
            domain: "d".to_owned(),
        };
        PreparedData::from_pairs(pairs.iter().map(pair).collect()).unwrap()
    }

    #[test]
    fn prompts_in_two_splits_and_many_cut_answers_are_named() {
        let train = data(&[(1, false), (2, false), (2, false)]);
        assert_eq!(doubts(&train, &[("dev", &data(&[(3, false)])), ("test", &data(&[(4, false)]))]), [""; 0]);
        let warned =
            doubts(&train, &[("dev", &data(&[(3, false)])), ("test", &data(&[(2, false), (2, false), (5, false)]))]);
        assert_eq!(warned.len(), 1);
        assert!(warned[0].starts_with("2 of 3 test pairs have a prompt that train has too"), "{warned:?}");

        let one_in = |all: u64| data(&(0..all).map(|hash| (hash, hash == 0)).collect::<Vec<_>>());
        assert_eq!(doubts(&one_in(11), &[]), [""; 0]);
        assert!(doubts(&one_in(10), &[])[0].starts_with("1 of 10 train pairs have an answer that was truncated"));
    }
}
