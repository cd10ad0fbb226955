//! Attention of packed groups, forward and backward, for one key/value head at a time.
//!
//! A group is `[prefix | suffix | suffix ...]`: every suffix sees the prefix and itself, as far back as the window goes.
//! Queries go in blocks of rows. A block sees one run of prefix columns and one run of its own, and only the visible part
//! is computed. The backward pass recomputes scores from each row's log-sum-exp (the flash-attention scheme, Dao, arXiv
//! 2307.08691). Products are of numbers in the compute kind, and are summed in f32. Not here: tensors (`slices.rs`).
//!
//! Legend: T tokens, H query heads, G key/value heads, E head width; rows are [T, H + 2 G, E].

mod block;
mod scores;

use super::tile::{COLUMNS, Left, Packed};
use crate::ops::parallel;
use crate::packing::{AttentionRules, Group, HeadCounts};
use block::{BLOCK, Block, RowStatistics, Side, Work};

/// Rows that see each other causally, and the number of prefix rows that all of them see.
#[derive(Clone, Copy)]
struct Span {
    /// First row, in the batch.
    start: usize,
    length: usize,
    /// 0 for the first span, which begins with the prefix.
    prefix: usize,
}

impl Group {
    fn spans(&self) -> Vec<Span> {
        let mut start = self.start;
        let span = |(index, &suffix): (usize, &usize)| {
            let (length, prefix) = if index == 0 { (self.prefix + suffix, 0) } else { (suffix, self.prefix) };
            start += length;
            Span { start: start - length, length, prefix }
        };
        self.suffixes.iter().enumerate().map(span).collect()
    }
}

impl HeadCounts {
    /// Numbers in a row of queries, keys and values.
    fn stride(self) -> usize {
        (self.query + 2 * self.key) * self.width
    }

    /// Query heads that share a key/value head.
    fn shared(self) -> usize {
        self.query / self.key
    }

    /// E in whole registers.
    fn padded(self) -> usize {
        self.width.next_multiple_of(COLUMNS)
    }

    /// Where a query head's numbers start in a row.
    fn query_at(self, head: usize) -> usize {
        head * self.width
    }

    fn key_at(self, head: usize) -> usize {
        (self.query + head) * self.width
    }

    fn value_at(self, head: usize) -> usize {
        (self.query + self.key + head) * self.width
    }
}

/// One (group, key/value head): all its work is independent of the others'.
type Task<'a> = (&'a Group, usize);

fn tasks(groups: &[Group], heads: HeadCounts) -> Vec<Task<'_>> {
    groups.iter().flat_map(|group| (0..heads.key).map(move |head| (group, head))).collect()
}

/// `rows` [T, H + 2 G, E] -> `output` [T, H, E] and each row's log-sum-exp, `log_sums` [T, H].
pub(crate) fn forward<E: Packed>(
    groups: &[Group],
    heads: HeadCounts,
    rules: AttentionRules,
    rows: &[E],
    output: &mut [E],
    log_sums: &mut [f32],
) {
    let task = |(group, head): Task| forward_task(group, head, heads, rules, rows);
    let done = parallel::map(tasks(groups, heads), task);
    for ((group, head), (outputs, sums)) in tasks(groups, heads).into_iter().zip(done) {
        for (row, (outputs, sums)) in
            outputs.chunks(heads.shared() * heads.width).zip(sums.chunks(heads.shared())).enumerate()
        {
            let first = (group.start + row) * heads.query + head * heads.shared();
            output[first * heads.width..][..outputs.len()].copy_from_slice(outputs);
            log_sums[first..][..sums.len()].copy_from_slice(sums);
        }
    }
}

/// Gradients of [`forward`]: `gradient` of the output [T, H, E] -> `rows_gradient` [T, H + 2 G, E].
pub(crate) fn backward<E: Packed>(
    groups: &[Group],
    heads: HeadCounts,
    rules: AttentionRules,
    rows: &[E],
    (gradient, output, log_sums): (&[E], &[E], &[f32]),
    rows_gradient: &mut [E],
) {
    let given = (gradient, output, log_sums);
    let task = |(group, head): Task| backward_task(group, head, heads, rules, rows, given);
    let done = parallel::map(tasks(groups, heads), task);
    let (stride, shared) = (heads.stride(), heads.shared());
    for ((group, head), gradients) in tasks(groups, heads).into_iter().zip(done) {
        for (row, gradients) in gradients.chunks((shared + 2) * heads.width).enumerate() {
            let row = &mut rows_gradient[(group.start + row) * stride..][..stride];
            let (query, rest) = gradients.split_at(shared * heads.width);
            let (key, value) = rest.split_at(heads.width);
            row[heads.query_at(head * shared)..][..query.len()].copy_from_slice(query);
            row[heads.key_at(head)..][..key.len()].copy_from_slice(key);
            row[heads.value_at(head)..][..value.len()].copy_from_slice(value);
        }
    }
}

/// Outputs [rows, shared heads, E] and log-sum-exps [rows, shared heads] of a group and a key/value head.
fn forward_task<E: Packed>(
    group: &Group,
    head: usize,
    heads: HeadCounts,
    rules: AttentionRules,
    rows: &[E],
) -> (Vec<E>, Vec<f32>) {
    let (shared, width, padded) = (heads.shared(), heads.width, heads.padded());
    let spans = group.spans();
    let side = |at: usize| -> Vec<Side<E::Word>> {
        spans.iter().map(|span| Side::new::<E>(*span, &rows[at..], heads.stride(), heads)).collect()
    };
    let (keys, values) = (side(heads.key_at(head)), side(heads.value_at(head)));
    let mut outputs = vec![E::default(); group.rows() * shared * width];
    let mut log_sums = vec![0f32; group.rows() * shared];
    let mut work = Work::<E>::new(group, heads, rules);
    for member in 0..shared {
        let query_at = heads.query_at(head * shared + member);
        for (index, span) in spans.iter().enumerate() {
            for first in (0..span.length).step_by(BLOCK) {
                let block = Block::new(*span, first, rules.window, E::PER_WORD);
                block::pack_rows::<E>(
                    &rows[query_at..],
                    heads.stride(),
                    (span.start + first, block.rows),
                    width,
                    &mut work.left,
                );
                work.products(block, (&keys[0], &keys[index]), heads);
                let RowStatistics { maxima, sums } = work.softmax(block);
                let words = Left { words: &work.words, row: work.stride / E::PER_WORD, step: 1 };
                block.combine::<E>(words, (&values[0], &values[index]), padded, &mut work.result);
                for row in 0..block.rows {
                    let place = (span.start - group.start + first + row) * shared + member;
                    log_sums[place] = maxima[row] + sums[row].ln();
                    let scale = 1.0 / sums[row];
                    let result = &work.result[row * padded..][..width];
                    for (output, value) in outputs[place * width..][..width].iter_mut().zip(result) {
                        *output = E::narrow(value * scale);
                    }
                }
            }
        }
    }
    (outputs, log_sums)
}

/// Gradients [rows, shared query heads | key | value, E] of a group and a key/value head.
fn backward_task<E: Packed>(
    group: &Group,
    head: usize,
    heads: HeadCounts,
    rules: AttentionRules,
    rows: &[E],
    (gradient, output, log_sums): (&[E], &[E], &[f32]),
) -> Vec<E> {
    let (shared, width, padded) = (heads.shared(), heads.width, heads.padded());
    let spans = group.spans();
    let side = |at: usize| -> Vec<Side<E::Word>> {
        spans.iter().map(|span| Side::new::<E>(*span, &rows[at..], heads.stride(), heads)).collect()
    };
    let sums = || -> Vec<Vec<f32>> { spans.iter().map(|span| vec![0f32; span.length * padded]).collect() };
    let mut backward = Backward {
        heads,
        keys: side(heads.key_at(head)),
        values: side(heads.value_at(head)),
        key_sums: sums(),
        value_sums: sums(),
        work: Work::new(group, heads, rules),
    };
    let columns = (shared + 2) * width;
    let mut gradients = vec![E::default(); group.rows() * columns];
    let mut write = |first: usize, rows: usize, place: usize, padded_rows: &[f32]| {
        for row in 0..rows {
            let at = (first + row) * columns + place * width;
            let values = &padded_rows[row * padded..][..width];
            gradients[at..at + width].iter_mut().zip(values).for_each(|(to, from)| *to = E::narrow(*from));
        }
    };
    for member in 0..shared {
        let query = head * shared + member;
        for (index, span) in spans.iter().enumerate() {
            for first in (0..span.length).step_by(BLOCK) {
                let block = Block::new(*span, first, rules.window, E::PER_WORD);
                let start = span.start + first;
                let of_row = |row: usize| log_sums[(start + row) * heads.query + query];
                let given = Given {
                    start,
                    queries: &rows[heads.query_at(query)..],
                    gradients: &gradient[query * width..],
                    outputs: &output[query * width..],
                    log_sums: (0..block.rows).map(of_row).collect(),
                };
                let query_gradient = backward.block(block, index, &given);
                write(start - group.start, block.rows, member, query_gradient);
            }
        }
    }
    for (place, all) in [(shared, &backward.key_sums), (shared + 1, &backward.value_sums)] {
        for (span, sums) in spans.iter().zip(all) {
            write(span.start - group.start, span.length, place, sums);
        }
    }
    gradients
}

/// The backward pass of a task: a [`Side`] and f32 gradient sums for each span of its key/value head.
struct Backward<E: Packed> {
    heads: HeadCounts,
    keys: Vec<Side<E::Word>>,
    values: Vec<Side<E::Word>>,
    key_sums: Vec<Vec<f32>>,
    value_sums: Vec<Vec<f32>>,
    work: Work<E>,
}

/// A query head's part of the batch, and the first of a block's rows in it.
struct Given<'a, E> {
    start: usize,
    queries: &'a [E],
    gradients: &'a [E],
    outputs: &'a [E],
    /// Of the block's rows.
    log_sums: Vec<f32>,
}

impl<E: Packed> Backward<E> {
    /// Adds a block's gradients of keys and values to the sums of the prefix and of the span of number `index`. Returns that
    /// of its queries, [rows, E padded].
    fn block(&mut self, block: Block, index: usize, given: &Given<E>) -> &[f32] {
        let Self { heads, keys, values, key_sums, value_sums, work } = self;
        let (width, padded, stride) = (heads.width, heads.padded(), work.stride);
        let (row_stride, head_stride, place) = (heads.stride(), heads.query * heads.width, (given.start, block.rows));
        block::pack_rows::<E>(given.queries, row_stride, place, width, &mut work.left);
        work.products(block, (&keys[0], &keys[index]), *heads);
        work.probabilities(block, &given.log_sums);
        // Gradient of the scores: p (dp - sum of gradient * output).
        block::pack_rows::<E>(given.gradients, head_stride, place, width, &mut work.left);
        std::mem::swap(&mut work.scores, &mut work.probabilities);
        work.products(block, (&values[0], &values[index]), *heads);
        let along = block::dots::<E>(given.gradients, given.outputs, head_stride, place, width);
        work.score_gradients(block, &along);
        // Now `probabilities` holds p, and `scores` the gradient of the scores.
        block::pair_rows::<E>(&work.probabilities, stride, block, &mut work.pairs);
        block::pack_along::<E>(given.gradients, head_stride, place, (width, padded), &mut work.along);
        block.add_to::<E>((&work.pairs, stride), &work.along, padded, (value_sums, index));
        block::pair_rows::<E>(&work.scores, stride, block, &mut work.pairs);
        block::pack_along::<E>(given.queries, row_stride, place, (width, padded), &mut work.along);
        block.add_to::<E>((&work.pairs, stride), &work.along, padded, (key_sums, index));
        block::pack_words::<E>(&work.scores, stride, block, &mut work.words);
        let words = Left { words: &work.words, row: stride / E::PER_WORD, step: 1 };
        block.combine::<E>(words, (&keys[0], &keys[index]), padded, &mut work.result);
        &work.result
    }
}
