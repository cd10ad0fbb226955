//! Attention of packed groups, forward and backward, for one key/value head at a time.
//!
//! A group is `[prefix | suffix | suffix ...]`: every suffix sees the prefix and itself. Queries go in blocks of rows;
//! what a block sees is one run of prefix columns and one run of its own, and only the visible part is computed. Scores
//! are made again in the backward pass from each row's log-sum-exp (the flash-attention scheme, Dao, arXiv 2307.08691).
//! Products take the compute kind's numbers and sum in f32. Not here: tensors; those are `model/attention.rs`'s.
//!
//! Legend: T tokens, H query heads, G key/value heads, E head width; rows are [T, H + 2 G, E].

use super::tile::{COLUMNS, Left, Packed};
use super::{Element, exp};
use crate::parallel;
use multiversion::multiversion;

/// Query rows that are computed together; whole words of either type.
const BLOCK: usize = 32;

/// Rows of one prompt with its answers in a packed row of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// First row.
    pub start: usize,
    /// Rows that every suffix sees; may be 0.
    pub prefix: usize,
    /// Rows of each suffix, in order; at least one.
    pub suffixes: Vec<usize>,
}

/// Rows that see each other causally, and how much of the group's prefix they see besides.
#[derive(Clone, Copy)]
struct Span {
    /// First row, in the batch.
    start: usize,
    length: usize,
    /// 0 for the first span, which begins with the prefix.
    prefix: usize,
}

impl Group {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.prefix + self.suffixes.iter().sum::<usize>()
    }

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

/// How rows are cut into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// H.
    pub query: usize,
    /// G, which divides H.
    pub key: usize,
    /// E, even.
    pub width: usize,
}

impl Heads {
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

    /// Where a head's numbers lie in a row.
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

/// A head's rows of one span, as the products want them.
struct Side<W> {
    /// [E / words, columns]: contraction along E.
    across: Vec<W>,
    columns: usize,
    /// [rows / words, E padded]: contraction along rows.
    along: Vec<W>,
}

/// One (group, key/value head): all its work is independent of the others'.
type Task<'a> = (&'a Group, usize);

fn tasks(groups: &[Group], heads: Heads) -> Vec<Task<'_>> {
    groups.iter().flat_map(|group| (0..heads.key).map(move |head| (group, head))).collect()
}

/// `rows` [T, H + 2 G, E] -> `output` [T, H, E] and each row's log-sum-exp, `log_sums` [T, H].
pub fn forward<E: Packed>(groups: &[Group], heads: Heads, rows: &[E], output: &mut [E], log_sums: &mut [f32]) {
    let done = parallel::map(tasks(groups, heads), |(group, head)| forward_task(group, head, heads, rows));
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
pub fn backward<E: Packed>(
    groups: &[Group],
    heads: Heads,
    rows: &[E],
    (gradient, output, log_sums): (&[E], &[E], &[f32]),
    rows_gradient: &mut [E],
) {
    let given = (gradient, output, log_sums);
    let done = parallel::map(tasks(groups, heads), |(group, head)| backward_task(group, head, heads, rows, given));
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
fn forward_task<E: Packed>(group: &Group, head: usize, heads: Heads, rows: &[E]) -> (Vec<E>, Vec<f32>) {
    let (shared, width, padded) = (heads.shared(), heads.width, heads.padded());
    let spans = group.spans();
    let side = |at: usize| -> Vec<Side<E::Word>> {
        spans.iter().map(|span| Side::new::<E>(*span, &rows[at..], heads.stride(), heads)).collect()
    };
    let (keys, values) = (side(heads.key_at(head)), side(heads.value_at(head)));
    let mut outputs = vec![E::default(); group.rows() * shared * width];
    let mut log_sums = vec![0f32; group.rows() * shared];
    let mut work = Work::<E>::new(group, heads);
    for member in 0..shared {
        let query_at = heads.query_at(head * shared + member);
        for (index, span) in spans.iter().enumerate() {
            for first in (0..span.length).step_by(BLOCK) {
                let block = Block::new(*span, first, E::PER_WORD);
                pack_rows::<E>(
                    &rows[query_at..],
                    heads.stride(),
                    (span.start + first, block.rows),
                    width,
                    &mut work.left,
                );
                work.products(block, (&keys[0], &keys[index]), heads);
                let (maxima, sums) = work.softmax(block, 1.0 / (width as f32).sqrt());
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
    heads: Heads,
    rows: &[E],
    (gradient, output, log_sums): (&[E], &[E], &[f32]),
) -> Vec<E> {
    let (shared, width, padded) = (heads.shared(), heads.width, heads.padded());
    let scale = 1.0 / (width as f32).sqrt();
    let spans = group.spans();
    let side = |at: usize| -> Vec<Side<E::Word>> {
        spans.iter().map(|span| Side::new::<E>(*span, &rows[at..], heads.stride(), heads)).collect()
    };
    let (keys, values) = (side(heads.key_at(head)), side(heads.value_at(head)));
    let sums = || -> Vec<Vec<f32>> { spans.iter().map(|span| vec![0f32; span.length * padded]).collect() };
    let (mut key_sums, mut value_sums) = (sums(), sums());
    let columns = (shared + 2) * width;
    let mut gradients = vec![E::default(); group.rows() * columns];
    let mut work = Work::<E>::new(group, heads);
    for member in 0..shared {
        let query = head * shared + member;
        for (index, span) in spans.iter().enumerate() {
            for first in (0..span.length).step_by(BLOCK) {
                let block = Block::new(*span, first, E::PER_WORD);
                let place = (span.start + first, block.rows);
                let (query_rows, gradient_rows) = (&rows[heads.query_at(query)..], &gradient[query * width..]);
                let output_rows = &output[query * width..];
                pack_rows::<E>(query_rows, heads.stride(), place, width, &mut work.left);
                work.products(block, (&keys[0], &keys[index]), heads);
                let row_sums: Vec<f32> =
                    (0..block.rows).map(|row| log_sums[(place.0 + row) * heads.query + query]).collect();
                work.probabilities(block, scale, &row_sums);
                // Of the scores: p (dp - sum of gradient * output).
                pack_rows::<E>(gradient_rows, heads.query * width, place, width, &mut work.left);
                std::mem::swap(&mut work.scores, &mut work.probabilities);
                work.products(block, (&values[0], &values[index]), heads);
                let along = dots::<E>(gradient_rows, output_rows, heads.query * width, place, width);
                work.score_gradients(block, scale, &along);
                // Now `probabilities` holds p and `scores` its gradient.
                pair_rows::<E>(&work.probabilities, work.stride, block, &mut work.pairs);
                pack_along::<E>(gradient_rows, heads.query * width, place, (width, padded), &mut work.along);
                let (pairs, stride) = (&work.pairs, work.stride);
                block.add_to::<E>((pairs, stride), &work.along, padded, (&mut value_sums, index));
                pair_rows::<E>(&work.scores, work.stride, block, &mut work.pairs);
                pack_along::<E>(query_rows, heads.stride(), place, (width, padded), &mut work.along);
                let (pairs, stride) = (&work.pairs, work.stride);
                block.add_to::<E>((pairs, stride), &work.along, padded, (&mut key_sums, index));
                pack_words::<E>(&work.scores, work.stride, block, &mut work.words);
                let words = Left { words: &work.words, row: work.stride / E::PER_WORD, step: 1 };
                block.combine::<E>(words, (&keys[0], &keys[index]), padded, &mut work.result);
                for row in 0..block.rows {
                    let at = (span.start - group.start + first + row) * columns + member * width;
                    let result = &work.result[row * padded..][..width];
                    gradients[at..at + width].iter_mut().zip(result).for_each(|(to, from)| *to = E::narrow(*from));
                }
            }
        }
    }
    for (offset, all) in [(shared, &key_sums), (shared + 1, &value_sums)] {
        for (span, sums) in spans.iter().zip(all) {
            for row in 0..span.length {
                let at = (span.start - group.start + row) * columns + offset * width;
                let sum = &sums[row * padded..][..width];
                gradients[at..at + width].iter_mut().zip(sum).for_each(|(to, from)| *to = E::narrow(*from));
            }
        }
    }
    gradients
}

/// A block of query rows and the columns of scores it sees: prefix columns, in whole words, then the span's own.
#[derive(Clone, Copy)]
struct Block {
    rows: usize,
    /// Prefix rows seen, and their columns with padding to a whole word.
    prefix: usize,
    own_at: usize,
    /// The span's own rows before the block.
    before: usize,
    per_word: usize,
}

impl Block {
    fn new(span: Span, first: usize, per_word: usize) -> Self {
        let rows = BLOCK.min(span.length - first);
        let own_at = span.prefix.next_multiple_of(per_word);
        Self { rows, prefix: span.prefix, own_at, before: first, per_word }
    }

    /// Own columns that some row of the block sees.
    fn own(self) -> usize {
        self.before + self.rows
    }

    /// All columns, in whole words.
    fn columns(self) -> usize {
        (self.own_at + self.own()).next_multiple_of(self.per_word)
    }

    /// Columns up to the last that `row` sees.
    fn seen(self, row: usize) -> usize {
        self.own_at + self.before + row + 1
    }

    /// `result` [rows, E padded] = words [rows, columns] times (prefix rows, then own rows).
    fn combine<E: Packed>(
        self,
        words: Left<E::Word>,
        (prefix, own): (&Side<E::Word>, &Side<E::Word>),
        padded: usize,
        result: &mut [f32],
    ) {
        let (prefix_words, own_words) = (self.own_at / E::PER_WORD, self.own().div_ceil(E::PER_WORD));
        if self.prefix > 0 {
            E::multiply(
                (self.rows, padded, prefix_words),
                words,
                (&prefix.along, padded),
                (&mut *result, padded),
                false,
            );
        }
        let words = Left { words: &words.words[prefix_words..], ..words };
        E::multiply((self.rows, padded, own_words), words, (&own.along, padded), (result, padded), self.prefix > 0);
    }

    /// Adds pairs^T [columns, rows] times `along` [rows, E padded] to the sums of the prefix's rows and of the own rows.
    fn add_to<E: Packed>(
        self,
        (pairs, stride): (&[E::Word], usize),
        along: &[E::Word],
        padded: usize,
        (sums, index): (&mut [Vec<f32>], usize),
    ) {
        let words = self.rows.div_ceil(E::PER_WORD);
        if self.prefix > 0 {
            let left = Left { words: pairs, row: 1, step: stride };
            E::multiply((self.prefix, padded, words), left, (along, padded), (&mut sums[0], padded), true);
        }
        let left = Left { words: &pairs[self.own_at..], row: 1, step: stride };
        E::multiply((self.own(), padded, words), left, (along, padded), (&mut sums[index], padded), true);
    }
}

impl<W: Copy + Default> Side<W> {
    fn new<E: Packed<Word = W>>(span: Span, rows: &[E], stride: usize, heads: Heads) -> Self {
        let columns = span.length.next_multiple_of(COLUMNS);
        let words = heads.width / E::PER_WORD;
        let mut across = vec![W::default(); words * columns];
        for row in 0..span.length {
            let numbers = &rows[(span.start + row) * stride..][..heads.width];
            for (word, pair) in numbers.chunks(E::PER_WORD).enumerate() {
                across[word * columns + row] = E::word(pair[0].wide(), pair[E::PER_WORD - 1].wide());
            }
        }
        let mut along = Vec::new();
        pack_along::<E>(rows, stride, (span.start, span.length), (heads.width, heads.padded()), &mut along);
        Self { across, columns, along }
    }
}

/// The buffers of a task.
struct Work<E: Packed> {
    /// Columns of `scores` and `probabilities`.
    stride: usize,
    scores: Vec<f32>,
    probabilities: Vec<f32>,
    /// Rows of queries, or of the output's gradient.
    left: Vec<E::Word>,
    words: Vec<E::Word>,
    pairs: Vec<E::Word>,
    along: Vec<E::Word>,
    result: Vec<f32>,
}

impl<E: Packed> Work<E> {
    fn new(group: &Group, heads: Heads) -> Self {
        // The longest run of columns, room for a padded prefix, and for whole registers.
        let stride = (group.rows() + 2 * COLUMNS).next_multiple_of(COLUMNS);
        Self {
            stride,
            scores: vec![0.0; BLOCK * stride],
            probabilities: vec![0.0; BLOCK * stride],
            left: Vec::new(),
            words: vec![E::Word::default(); BLOCK * stride / E::PER_WORD],
            pairs: vec![E::Word::default(); BLOCK * stride / E::PER_WORD],
            along: Vec::new(),
            result: vec![0.0; BLOCK * heads.padded()],
        }
    }

    /// `scores` = left times what the block sees, unscaled and unmasked.
    fn products(&mut self, block: Block, (prefix, own): (&Side<E::Word>, &Side<E::Word>), heads: Heads) {
        let words = heads.width / E::PER_WORD;
        let left = Left { words: &self.left, row: words, step: 1 };
        if block.prefix > 0 {
            let columns = block.prefix.next_multiple_of(COLUMNS);
            E::multiply(
                (block.rows, columns, words),
                left,
                (&prefix.across, prefix.columns),
                (&mut self.scores, self.stride),
                false,
            );
        }
        let columns = block.own().next_multiple_of(COLUMNS);
        let scores = &mut self.scores[block.own_at..];
        E::multiply((block.rows, columns, words), left, (&own.across, own.columns), (scores, self.stride), false);
    }

    /// Scores -> exp(scaled score - the row's largest), as words; the largest and the sum of each row.
    fn softmax(&mut self, block: Block, scale: f32) -> ([f32; BLOCK], [f32; BLOCK]) {
        let (mut maxima, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        for row in 0..block.rows {
            let scores = &mut self.scores[row * self.stride..][..block.columns()];
            scores[block.prefix..block.own_at].fill(f32::NEG_INFINITY);
            scores[block.seen(row)..].fill(f32::NEG_INFINITY);
            (maxima[row], sums[row]) = exponentials(scores, scale);
        }
        pack_words::<E>(&self.scores, self.stride, block, &mut self.words);
        (maxima, sums)
    }

    /// Scores -> probabilities, in place, given each row's log-sum-exp; 0 where a row does not see.
    fn probabilities(&mut self, block: Block, scale: f32, log_sums: &[f32]) {
        for (row, log_sum) in log_sums.iter().enumerate() {
            let scores = &mut self.scores[row * self.stride..][..block.columns()];
            scores[block.prefix..block.own_at].fill(f32::NEG_INFINITY);
            scores[block.seen(row)..].fill(f32::NEG_INFINITY);
            exponentials_less(scores, scale, *log_sum);
        }
    }

    /// `scores` -> probability * (score - along) * scale, in place.
    fn score_gradients(&mut self, block: Block, scale: f32, along: &[f32]) {
        for (row, along) in along.iter().enumerate() {
            let scores = &mut self.scores[row * self.stride..][..block.columns()];
            let probabilities = &self.probabilities[row * self.stride..][..block.columns()];
            for (score, probability) in scores.iter_mut().zip(probabilities) {
                // Where nothing is seen the product holds whatever other rows gave; a finite number times 0.
                *score = if *probability == 0.0 { 0.0 } else { probability * (*score - along) * scale };
            }
        }
    }
}

/// x -> exp(x * scale - largest); returns the scaled largest and the sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn exponentials(row: &mut [f32], scale: f32) -> (f32, f32) {
    let largest = row.iter().fold(f32::NEG_INFINITY, |most, &value| if value > most { value } else { most }) * scale;
    for value in row.iter_mut() {
        *value = exp(*value * scale - largest);
    }
    let mut lanes = [0f32; COLUMNS];
    let chunks = row.chunks_exact(COLUMNS);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    (largest, lanes.iter().sum::<f32>() + rest)
}

/// x -> exp(x * scale - less).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn exponentials_less(row: &mut [f32], scale: f32, less: f32) {
    for value in row {
        *value = exp(*value * scale - less);
    }
}

/// Sum of products of rows [first, first + count) of two matrices.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn dots<E: Element>(left: &[E], right: &[E], stride: usize, place: (usize, usize), width: usize) -> Vec<f32> {
    let (first, count) = place;
    let dot = |row: usize| {
        let mut lanes = [0f32; 8];
        let (left, right) = (&left[row * stride..][..width], &right[row * stride..][..width]);
        for (left, right) in left.chunks(8).zip(right.chunks(8)) {
            for (lane, (left, right)) in lanes.iter_mut().zip(left.iter().zip(right)) {
                *lane += left.wide() * right.wide();
            }
        }
        lanes.iter().sum()
    };
    (first..first + count).map(dot).collect()
}

/// Rows of numbers -> rows of words.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn pack_rows<E: Packed>(rows: &[E], stride: usize, place: (usize, usize), width: usize, words: &mut Vec<E::Word>) {
    words.clear();
    for row in place.0..place.0 + place.1 {
        let numbers = rows[row * stride..][..width].chunks(E::PER_WORD);
        words.extend(numbers.map(|pair| E::word(pair[0].wide(), pair[E::PER_WORD - 1].wide())));
    }
}

/// Rows of numbers -> words of neighbouring rows, [rows / words, padded]; an odd last row is paired with zeros.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn pack_along<E: Packed>(
    rows: &[E],
    stride: usize,
    (first, count): (usize, usize),
    (width, padded): (usize, usize),
    words: &mut Vec<E::Word>,
) {
    words.clear();
    words.resize(count.div_ceil(E::PER_WORD) * padded, E::Word::default());
    for (at, words) in words.chunks_mut(padded).enumerate() {
        let row = first + at * E::PER_WORD;
        let one = &rows[row * stride..][..width];
        if E::PER_WORD == 2 && row + 1 < first + count {
            let other = &rows[(row + 1) * stride..][..width];
            for ((word, one), other) in words.iter_mut().zip(one).zip(other) {
                *word = E::word(one.wide(), other.wide());
            }
        } else {
            words.iter_mut().zip(one).for_each(|(word, one)| *word = E::word(one.wide(), 0.0));
        }
    }
}

/// The block's rows of f32 -> rows of words along the columns.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn pack_words<E: Packed>(values: &[f32], stride: usize, block: Block, words: &mut [E::Word]) {
    for row in 0..block.rows {
        let values = values[row * stride..][..block.columns()].chunks_exact(E::PER_WORD);
        let words = &mut words[row * (stride / E::PER_WORD)..];
        words.iter_mut().zip(values).for_each(|(word, pair)| *word = E::word(pair[0], pair[E::PER_WORD - 1]));
    }
}

/// The block's rows of f32 -> words of neighbouring rows, [rows / words, stride].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn pair_rows<E: Packed>(values: &[f32], stride: usize, block: Block, words: &mut [E::Word]) {
    for row in (0..block.rows).step_by(E::PER_WORD) {
        let one = &values[row * stride..][..block.columns()];
        let words = &mut words[row / E::PER_WORD * stride..];
        if E::PER_WORD == 2 && row + 1 < block.rows {
            let other = &values[(row + 1) * stride..][..block.columns()];
            for ((word, one), other) in words.iter_mut().zip(one).zip(other) {
                *word = E::word(*one, *other);
            }
        } else {
            words.iter_mut().zip(one).for_each(|(word, one)| *word = E::word(*one, 0.0));
        }
    }
}
