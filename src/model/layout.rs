//! Which parameters each part of a model has: their names, shapes, and places in the part's segment.
//!
//! Not here: what is computed with them (`decoder.rs`).
//!
//! Legend: D width, H query heads, G key/value heads, E head width, F width of the MLP or of each of X experts, V
//! vocabulary.

use super::architecture::{Architecture, BeforeMlp, BlockDescription, QueryKeyNorm, StoredHeads};
use super::declared::{Declared, Rows};
use std::ops::Range;

/// Name of the reward head, in every family.
pub(crate) const REWARD_HEAD: &str = "score.weight";

/// The part of a model that a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The token embedding, and with tied weights the vocabulary product too.
    Embedding,
    /// The block of this number.
    Block(usize),
    /// The final norm.
    Norm,
    /// The untied language-model head.
    LanguageModelHead,
    /// The scalar reward head, always computed in f32.
    RewardHead,
    /// The adapters of the block of this number; after all other parts, in a model with adapters.
    Adapter(usize),
}

impl Part {
    /// Every part of a model but its adapters, in the order of the forward pass.
    pub fn all(architecture: &Architecture) -> Vec<Self> {
        let mut parts = vec![Self::Embedding];
        parts.extend((0..architecture.blocks.len()).map(Self::Block));
        parts.push(Self::Norm);
        if !architecture.tied {
            parts.push(Self::LanguageModelHead);
        }
        parts.push(Self::RewardHead);
        parts
    }

    /// The part's parameters, in the order of its segment. Those of adapters are
    /// [`Lora::parameters`](super::lora::Lora::parameters).
    pub fn parameters(self, architecture: &Architecture) -> Vec<Declared> {
        let Architecture { vocabulary, width, names, .. } = architecture;
        let (vocabulary, width) = (*vocabulary as i64, *width as i64);
        match self {
            Self::Embedding => {
                let mut embedding = vec![Declared::new(format!("{}.weight", names.embedding), &[vocabulary, width])];
                // The head's matrix is the embedding's, its bias is not.
                if architecture.tied && architecture.head_bias {
                    embedding.push(Declared::new(format!("{}.bias", names.head[0]), &[vocabulary]));
                }
                embedding
            }
            Self::Norm => {
                let kinds = architecture.norm.parameters().iter();
                kinds.map(|kind| Declared::new(format!("{}.{kind}", names.norm), &[width])).collect()
            }
            Self::LanguageModelHead => {
                let mut head = vec![Declared::new(format!("{}.weight", names.head[0]), &[vocabulary, width])];
                if architecture.head_bias {
                    head.push(Declared::new(format!("{}.bias", names.head[0]), &[vocabulary]));
                }
                head
            }
            Self::RewardHead => vec![Declared::new(REWARD_HEAD, &[1, width])],
            Self::Block(index) => block(architecture, index),
            Self::Adapter(_) => Vec::new(),
        }
    }
}

/// For a folder that lacks the language-model head, as a reward model's may: the architecture and its parts except adapters,
/// without that head, or without the bias of a tied one.
pub(crate) fn without_head(architecture: &Architecture) -> (Architecture, Vec<Part>) {
    let head_bias = architecture.head_bias && !architecture.tied;
    let architecture = Architecture { head_bias, ..architecture.clone() };
    let mut parts = Part::all(&architecture);
    parts.retain(|part| *part != Part::LanguageModelHead);
    (architecture, parts)
}

/// Parameters of a linear map, or of several adjacent ones that are computed as one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Projection {
    /// Places of the matrices.
    pub(crate) weights: Range<usize>,
    /// Places of their biases.
    pub(crate) biases: Option<Range<usize>>,
}

/// Where a block's parameters lie in its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The norm before attention, if there is one.
    pub(crate) input_norm: Option<usize>,
    /// Queries, keys and values.
    pub(crate) query_key_value: Projection,
    /// Attention's output.
    pub(crate) attention_output: Projection,
    /// The norms of queries and of keys.
    pub(crate) query_key_norms: Option<[usize; 2]>,
    /// The norm after attention.
    pub(crate) post_attention_norm: Option<usize>,
    /// The norm before the MLP: `input_norm` if it is shared.
    pub(crate) mlp_norm: Option<usize>,
    /// The router, if there are experts.
    pub(crate) router: Option<usize>,
    /// Gate and up, or up alone; expert after expert.
    pub(crate) up: Projection,
    /// The MLP's output; expert after expert.
    pub(crate) down: Projection,
    /// The norm after the MLP.
    pub(crate) post_mlp_norm: Option<usize>,
    /// Number of parameters.
    count: usize,
}

impl Places {
    /// Matrices and norms in the order of the forward pass, then all biases of linear maps.
    pub(crate) fn of(architecture: &Architecture, block: usize) -> Self {
        let block = &architecture.blocks[block];
        let BlockDescription { norms, mlp, biases, .. } = block;
        let mut count = 0;
        let mut take = |parameters: usize| {
            count += parameters;
            count - parameters..count
        };
        let norm = architecture.norm.parameters().len();
        let input_norm = norms.before_attention.then(|| take(norm).start);
        let query_key_value = take(if block.stored == StoredHeads::Apart { 3 } else { 1 });
        let attention_output = take(1);
        let query_key_norms = block.query_key_norm.map(|_| [(); 2].map(|()| take(norm).start));
        let post_attention_norm = norms.after_attention.then(|| take(norm).start);
        let mlp_norm = match norms.before_mlp {
            BeforeMlp::Own => Some(take(norm).start),
            BeforeMlp::Shared => input_norm,
            BeforeMlp::None => None,
        };
        let experts = mlp.experts.map_or(1, |experts| experts.count);
        let router = mlp.experts.map(|_| take(1).start);
        let up = take(if mlp.kind.gated && !mlp.stacked { 2 * experts } else { experts });
        let down = take(experts);
        let post_mlp_norm = norms.after_mlp.then(|| take(norm).start);
        let mut project = |weights: Range<usize>, biased: bool| {
            let biases = biased.then(|| take(weights.len()));
            Projection { weights, biases }
        };
        Self {
            input_norm,
            query_key_value: project(query_key_value, biases.query_key_value),
            attention_output: project(attention_output, biases.output),
            query_key_norms,
            post_attention_norm,
            mlp_norm,
            router,
            up: project(up, mlp.biases),
            down: project(down, mlp.biases),
            post_mlp_norm,
            count,
        }
    }
}

/// Elements of a block's parameters that a token is computed with: all, except those of experts that it does not go through.
pub fn active_elements(architecture: &Architecture, index: usize) -> usize {
    let places = Places::of(architecture, index);
    let of_experts = |place: &usize| places.up.weights.contains(place) || places.down.weights.contains(place);
    let (mut all, mut shared) = (0, 0);
    for (place, one) in block(architecture, index).iter().enumerate() {
        let elements = one.shape.iter().product::<i64>() as usize;
        if of_experts(&place) { shared += elements } else { all += elements }
    }
    all + (shared as f64 * architecture.blocks[index].mlp.active_share()) as usize
}

/// A block's parameters, each at its place.
fn block(architecture: &Architecture, index: usize) -> Vec<Declared> {
    let Architecture { width, names, .. } = architecture;
    let BlockDescription { heads, mlp, norms, query_key_norm, .. } = &architecture.blocks[index];
    let [width, head] = [*width, heads.width].map(|size| size as i64);
    let [query, key] = [heads.query, heads.key].map(|heads| heads as i64 * head);
    let places = Places::of(architecture, index);
    let mut all = vec![Declared::new("", &[]); places.count];
    let mut put = |place: usize, name: &str, kind: &str, shape: Vec<i64>, rows| {
        all[place] = Declared { name: format!("{}{index}.{name}.{kind}", names.block), shape, rows };
    };
    for (place, name) in [
        (places.input_norm, names.input_norm),
        (places.post_attention_norm, names.post_attention_norm),
        (places.mlp_norm.filter(|_| norms.before_mlp == BeforeMlp::Own), names.mlp_norm),
        (places.post_mlp_norm, names.post_mlp_norm),
    ] {
        for (offset, kind) in architecture.norm.parameters().iter().enumerate() {
            if let Some(place) = place {
                put(place + offset, name, kind, vec![width], Rows::AsInMemory);
            }
        }
    }
    if let (Some(places), Some(norm)) = (places.query_key_norms, query_key_norm) {
        let widths = match norm {
            QueryKeyNorm::PerHead => [head, head],
            QueryKeyNorm::WholeWidth => [query, key],
        };
        for ((place, name), width) in places.into_iter().zip(names.query_key_norms).zip(widths) {
            for (offset, kind) in architecture.norm.parameters().iter().enumerate() {
                put(place + offset, name, kind, vec![width], Rows::AsInMemory);
            }
        }
    }
    if let (Some(place), Some(experts)) = (places.router, mlp.experts) {
        put(place, names.router, "weight", vec![experts.count as i64, width], Rows::AsInMemory);
    }
    let as_in_memory = |name: &str, outputs| Matrix { name: name.to_owned(), outputs, rows: Rows::AsInMemory };
    let MlpMatrices { up, down } = mlp_matrices(architecture, index);
    for (projection, matrices, inputs) in [
        (&places.query_key_value, query_key_value(architecture, index), width),
        (&places.attention_output, vec![as_in_memory(names.attention_output, width)], query),
        (&places.up, up, width),
        (&places.down, down, mlp.width as i64),
    ] {
        for (at, Matrix { name, outputs, rows }) in matrices.iter().enumerate() {
            put(projection.weights.start + at, name, "weight", vec![*outputs, inputs], *rows);
            if let Some(biases) = &projection.biases {
                put(biases.start + at, name, "bias", vec![*outputs], *rows);
            }
        }
    }
    all
}

/// A matrix of a linear map.
struct Matrix {
    name: String,
    outputs: i64,
    rows: Rows,
}

/// Queries, keys and values, or the matrix that holds the rows of all.
fn query_key_value(architecture: &Architecture, index: usize) -> Vec<Matrix> {
    let names = &architecture.names;
    let BlockDescription { heads, stored, rotation, .. } = &architecture.blocks[index];
    let width = heads.width as i64;
    let [query, key] = [heads.query, heads.key].map(|heads| heads as i64 * width);
    let rotation = rotation.map(|rotation| &architecture.rotations[rotation]);
    let turned = match rotation.filter(|rotation| rotation.neighbors) {
        Some(rotation) => Rows::Neighbors { width, turned: rotation.width as i64 },
        None => Rows::AsInMemory,
    };
    let stacked =
        |rows| vec![Matrix { name: names.stacked_query_key_value.to_owned(), outputs: query + 2 * key, rows }];
    match stored {
        StoredHeads::Apart => {
            let of_heads = [(query, turned), (key, turned), (key, Rows::AsInMemory)];
            let named = names.query_key_value.into_iter().zip(of_heads);
            named.map(|(name, (outputs, rows))| Matrix { name: name.to_owned(), outputs, rows }).collect()
        }
        StoredHeads::Stacked => stacked(Rows::AsInMemory),
        StoredHeads::HeadByHead => stacked(Rows::HeadByHead(heads.query as i64)),
    }
}

/// The matrices of an MLP, expert after expert if there are experts.
struct MlpMatrices {
    /// Gate and up, or up alone.
    up: Vec<Matrix>,
    /// The output.
    down: Vec<Matrix>,
}

fn mlp_matrices(architecture: &Architecture, index: usize) -> MlpMatrices {
    let names = &architecture.names;
    let mlp = &architecture.blocks[index].mlp;
    let (inner, width) = (mlp.width as i64, architecture.width as i64);
    let [gate, up, down] = match mlp.experts {
        Some(_) => names.expert_matrices,
        None => [names.gate, names.up, names.down],
    };
    let up = match (mlp.kind.gated, mlp.stacked) {
        (true, false) => vec![(gate, inner), (up, inner)],
        (true, true) => vec![(names.stacked_gate_up, 2 * inner)],
        (false, _) => vec![(up, inner)],
    };
    let prefixes: Vec<String> = match mlp.experts {
        Some(experts) => (0..experts.count).map(|expert| format!("{}{expert}.", names.experts)).collect(),
        None => vec![String::new()],
    };
    let of_all = |matrices: &[(&str, i64)]| -> Vec<Matrix> {
        let of = |prefix: &String| {
            let matrix = |(name, outputs): &(&str, i64)| Matrix {
                name: format!("{prefix}{name}"),
                outputs: *outputs,
                rows: Rows::AsInMemory,
            };
            matrices.iter().map(matrix).collect::<Vec<_>>()
        };
        prefixes.iter().flat_map(of).collect()
    };
    MlpMatrices { up: of_all(&up), down: of_all(&[(down, width)]) }
}
