//! A hash of a tensor's bits as tensor operations.

use crate::error::{Error, Result};
use crate::tensor;
use tch::{Kind, Tensor};

/// Elements that are hashed at a time, to limit memory.
const CHUNK: i64 = 1 << 24;

/// A hash of a tensor's bits, on its device: the sum of its words, each times an odd number of its own, modulo 2^64. A
/// change of any one bit changes it, the order of the sum does not.
pub(crate) fn hash(values: &Tensor) -> Result<Tensor> {
    let words = match values.kind() {
        Kind::Float => values.f_view_dtype(Kind::Int)?,
        Kind::BFloat16 | Kind::Half => values.f_view_dtype(Kind::Int16)?,
        kind => return Err(Error::runtime(format!("weights of kind {kind:?} cannot be hashed"))),
    };
    let length = tensor::count(&words) as i64;
    let mut sum = Tensor::f_zeros([1], (Kind::Int64, words.device()))?;
    for start in (0..length).step_by(CHUNK as usize) {
        let part = words.f_narrow(0, start, CHUNK.min(length - start))?.f_to_kind(Kind::Int64)?;
        let odd = Tensor::f_arange_start_step(
            2 * start + 1,
            2 * (start + part.size()[0]) + 1,
            2,
            (Kind::Int64, words.device()),
        )?;
        let _ = sum.f_add_(&part.f_mul(&odd)?.f_sum(Kind::Int64)?)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_device_sees_each_bit_and_each_place() {
        let hash = |values: &Tensor| super::hash(values).unwrap().int64_value(&[]);
        for kind in [Kind::Float, Kind::BFloat16] {
            let values = tensor::waves(&[1001], 0.5).to_kind(kind);
            let before = hash(&values);
            assert_eq!(hash(&values.copy()), before);
            let swapped = values.copy();
            swapped.narrow(0, 3, 1).copy_(&values.narrow(0, 700, 1));
            swapped.narrow(0, 700, 1).copy_(&values.narrow(0, 3, 1));
            assert_eq!(swapped.sum(Kind::Double), values.sum(Kind::Double), "the control: a sum sees no swap");
            assert_ne!(hash(&swapped), before);
            let flipped = values.copy();
            let words = if kind == Kind::Float { Kind::Int } else { Kind::Int16 };
            let _ = flipped.view_dtype(words).narrow(0, 1000, 1).bitwise_xor_tensor_(&Tensor::from(1).to_kind(words));
            assert_ne!(hash(&flipped), before, "{kind:?}");
        }
    }
}
