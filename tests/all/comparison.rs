//! Promise: a comparison counts right, treats a prompt as one piece of evidence, and refuses runs that are no pair.

use haf_dist::config::{Config, Objective};
use haf_dist::evaluate::comparison::{ComparedRun, Comparison, Difference, RankedBy};
use haf_dist::metrics::{PairOutcome, RunFacts};

const CONFIG: &str = "model.path = 'm'\ndata.train = [{ path = 't' }]\noutput.dir = 'o'\n";

/// A run whose heads get right what the two texts say: `+` right, `-` wrong, `=` a tie, an empty text no such head (of hybrid: as the reward head). Two
/// pairs a prompt.
fn run(objective: &str, seed: u64, reward: &str, policy: &str) -> ComparedRun {
    let set = [format!("loss.objective={objective}"), format!("data.seed={seed}"), format!("output.dir={seed}")];
    let config = Config::parse("a.toml", CONFIG, &set).unwrap();
    // The hybrid objective has both heads.
    let policy = if objective == "hybrid" && policy.is_empty() { reward } else { policy };
    let margin = |text: &str, index: usize| match text.as_bytes().get(index) {
        Some(b'+') => Some(0.5),
        Some(b'-') => Some(-0.5),
        Some(_) => Some(0.0),
        None => None,
    };
    let outcome = |index: usize| PairOutcome {
        pair: format!("{index}"),
        prompt: format!("{:016x}", index / 2),
        domain: "d".into(),
        margin: margin(reward, index),
        implicit_margin: margin(policy, index),
    };
    ComparedRun {
        name: format!("{objective}-{seed}"),
        facts: RunFacts { step: 4, data_key: format!("order {seed}"), model_key: "m".into(), combined: None, config },
        outcomes: (0..reward.len().max(policy.len())).map(outcome).collect(),
    }
}

#[test]
fn a_run_that_diverged_is_refused_rather_than_left_out() {
    let mut diverged = run("hybrid", 2, "++++", "++--");
    diverged.outcomes[3].margin = None;
    let error = Comparison::of(&[run("hybrid", 1, "++++", "++--"), diverged]).unwrap_err();
    assert!(error.message.contains("hybrid-2") && error.hint.is_some(), "{error}");
}

fn find(comparison: &Comparison, of: (Objective, RankedBy), over: (Objective, RankedBy)) -> Difference {
    let is = |ranker: haf_dist::evaluate::comparison::Ranker, wanted| (ranker.objective, ranker.ranked_by) == wanted;
    comparison.differences.iter().find(|row| is(row.of, of) && is(row.over, over)).unwrap().clone()
}

const HYBRID: (Objective, RankedBy) = (Objective::Hybrid, RankedBy::Reward);
const REWARD: (Objective, RankedBy) = (Objective::Reward, RankedBy::Reward);
const POLICY: (Objective, RankedBy) = (Objective::Policy, RankedBy::Policy);

#[test]
fn accuracies_and_differences_are_means_over_pairs_and_seeds() {
    let runs = [
        run("hybrid", 1, "++++++-=", "++------"),
        run("hybrid", 2, "++++++++", "++++----"),
        run("reward", 1, "++--++--", ""),
        run("reward", 2, "++++++--", ""),
        run("policy", 1, "", "+-+-+-+-"),
    ];
    let comparison = Comparison::of(&runs).unwrap();
    assert_eq!((comparison.pairs, comparison.prompts, comparison.seeds.len()), (8, 4, 2));
    let hybrid = &comparison.accuracies[0];
    assert_eq!(hybrid.by_seed[&1].0, 6.5 / 8.0, "a tie is half a hit");
    assert_eq!((hybrid.by_seed[&2].0, hybrid.mean), (1.0, 7.25 / 8.0));
    let interval = hybrid.interval.unwrap();
    assert!(interval.low < hybrid.mean && hybrid.mean <= interval.high, "{interval:?}");

    let over_reward = find(&comparison, HYBRID, REWARD);
    assert_eq!((over_reward.by_seed[&1], over_reward.by_seed[&2]), (2.5 / 8.0, 0.25));
    assert_eq!(over_reward.mean, (2.5 / 8.0 + 0.25) / 2.0);
    // Half hits of the four prompts over both seeds: 0, 4, 0, 1 + 4. Both kept together or both turned round is as far.
    assert_eq!(over_reward.p, 0.5);
    // Only seed 1 has a policy run.
    let over_policy = find(&comparison, HYBRID, POLICY);
    assert_eq!(over_policy.by_seed.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(over_policy.deviation, None, "one seed has no spread");
    assert!(comparison.differences.iter().all(|row| row.p <= row.p_holm && row.p_holm <= 1.0));
}

#[test]
fn more_seeds_of_the_same_answers_are_no_more_evidence_about_the_test_pairs() {
    let seeds = |count: u64| {
        let of_seed = |seed| [run("hybrid", seed, "++++++++++-+", ""), run("reward", seed, "-+-+-+-+-+-+", "")];
        let runs: Vec<ComparedRun> = (1..=count).flat_map(of_seed).collect();
        find(&Comparison::of(&runs).unwrap(), HYBRID, REWARD)
    };
    assert_eq!((seeds(1).p, seeds(1).interval), (seeds(5).p, seeds(5).interval));
    // Five of five prompts: as rare as five heads, or five tails.
    assert_eq!(seeds(1).p, 2.0 / 32.0);
    // The control: more prompts are.
    let doubled = [run("hybrid", 1, &"++".repeat(10), ""), run("reward", 1, &"-+".repeat(10), "")];
    assert!(find(&Comparison::of(&doubled).unwrap(), HYBRID, REWARD).p < seeds(5).p);
}

#[test]
fn runs_that_never_differ_are_not_said_to_be_equal_for_certain() {
    let runs = [run("hybrid", 1, "++-+-+", ""), run("reward", 1, "++-+-+", "")];
    let same = find(&Comparison::of(&runs).unwrap(), HYBRID, REWARD);
    let interval = same.interval.unwrap();
    assert_eq!((same.mean, same.p), (0.0, 1.0));
    assert!(interval.low < -0.1 && interval.high > 0.1, "{interval:?}");
}

#[test]
fn what_is_no_pair_is_refused_by_name() {
    let hybrid = run("hybrid", 1, "++", "+-");
    let refusal = |change: &dyn Fn(&mut ComparedRun)| {
        let mut other = run("reward", 1, "+-", "");
        change(&mut other);
        let error = Comparison::of(&[hybrid.clone(), other]).expect_err("these runs should be refused");
        assert!(error.hint.is_some() && error.message.starts_with("reward-1: "), "{error}");
        error.message
    };
    assert!(refusal(&|run| run.outcomes[1].pair = "other".into()).contains("other test pairs than hybrid-1"));
    assert!(refusal(&|run| run.outcomes.clear()).contains("other test pairs"));
    assert!(refusal(&|run| run.facts.data_key = "other".into()).contains("other training pairs than hybrid-1"));
    assert!(refusal(&|run| run.facts.model_key = "other".into()).contains("another starting model"));
    assert!(refusal(&|run| run.facts.step = 3).contains("tested after step 3, but hybrid-1 after step 4"));
    assert!(refusal(&|run| run.facts.config.loss.alpha = 0.7).contains("loss.alpha: 0.2 -> 0.7"));
    assert!(refusal(&|run| run.facts.config.loss.objective = Objective::Hybrid).contains("a second run"));
    // What changes no result may differ.
    let mut other = run("reward", 1, "+-", "");
    other.facts.config.parallel.threads = 2;
    other.facts.config.train.tokens_per_micro_batch = 77;
    other.facts.config.data.cache_dir = "elsewhere".into();
    Comparison::of(&[hybrid, other]).unwrap();
}

#[test]
fn the_tables_and_the_json_lines_have_every_figure() {
    let runs = [
        run("hybrid", 1, "++++", "++--"),
        run("hybrid", 2, "+++-", "++--"),
        run("reward", 1, "++--", ""),
        run("reward", 2, "++--", ""),
        run("policy", 1, "", "-+++"),
        run("policy", 2, "", "++++"),
    ];
    let comparison = Comparison::of(&runs).unwrap();
    insta::assert_snapshot!("comparison", comparison.markdown());
    let lines = comparison.json_lines();
    // The runs, three rows (two seeds and the mean) of four rankers, four differences.
    assert_eq!(lines.len(), 1 + 4 * 3 + 4);
    assert_eq!(lines[0]["seeds"], serde_json::json!([1, 2]));
    assert!(lines[1]["objective"] == "hybrid" && lines[1]["seed"] == 1 && lines[1]["accuracy"] == 1.0, "{}", lines[1]);
    assert_eq!(lines[13]["over"], serde_json::json!({"objective": "reward", "ranked_by": "reward"}));
    assert_eq!(lines[13]["difference"], 0.375);
}
