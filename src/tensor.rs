//! Small tensor helpers: kinds, and the memory of CPU tensors as slices.
//!
//! One of the few files with `unsafe`: tch hands out a raw pointer, and everything that walks a tensor's memory
//! (optimiser, MPI, safetensors) goes through the checked functions here.

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// A Rust number type and the tensor kind that holds it.
///
/// # Safety
/// `KIND` must be the kind whose elements have exactly this type's layout.
pub unsafe trait Number: Copy {
    /// The tensor kind with this layout.
    const KIND: Kind;
}

// SAFETY: libtorch stores these kinds as the C++ types of the same width.
unsafe impl Number for f32 {
    const KIND: Kind = Kind::Float;
}
// SAFETY: as above.
unsafe impl Number for f64 {
    const KIND: Kind = Kind::Double;
}
// SAFETY: as above.
unsafe impl Number for i64 {
    const KIND: Kind = Kind::Int64;
}
// SAFETY: as above.
unsafe impl Number for u8 {
    const KIND: Kind = Kind::Uint8;
}
// SAFETY: half::bf16 is a transparent u16 with bfloat16's layout.
unsafe impl Number for half::bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// Number of elements.
pub fn count(tensor: &Tensor) -> usize {
    tensor.size().iter().product::<i64>() as usize
}

/// Values as a tensor on a device. For a GPU they go through pinned memory and the copy is only queued, behind the work
/// that is queued there already: nobody waits for it, and libtorch keeps the pinned memory until it is over.
pub fn on_device<T: tch::kind::Element>(values: &[T], device: Device) -> Tensor {
    let values = Tensor::from_slice(values);
    match device {
        Device::Cpu => values,
        Device::Cuda(_) => values.pin_memory(device).to_device_(device, T::KIND, true, false),
        _ => values.to_device(device),
    }
}

/// The values on the host: the tensor itself where they are there. From a GPU the copy is only queued, into pinned memory; who
/// reads it must know that what was queued by then is done.
///
/// # Errors
/// A failed device.
pub fn queue_to_host(values: &Tensor) -> Result<Tensor> {
    Ok(values.f_to_device_(Device::Cpu, values.kind(), true, false)?)
}

fn check(tensor: &Tensor, kind: Option<Kind>) -> Result<()> {
    let wrong_kind = kind.is_some_and(|kind| kind != tensor.kind());
    if tensor.device() != Device::Cpu || !tensor.is_contiguous() || wrong_kind {
        return Err(Error::runtime(format!(
            "a contiguous CPU tensor{} was expected, not {:?} on {:?}",
            kind.map(|kind| format!(" of {kind:?}")).unwrap_or_default(),
            tensor.kind(),
            tensor.device()
        )));
    }
    Ok(())
}

/// The elements of a contiguous CPU tensor.
pub fn slice<T: Number>(tensor: &Tensor) -> Result<&[T]> {
    check(tensor, Some(T::KIND))?;
    let length = count(tensor);
    if length == 0 {
        return Ok(&[]);
    }
    // SAFETY: checked above: contiguous, on the CPU, `length` elements of `T`; the borrow keeps the tensor alive.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr() as *const T, length) })
}

/// The elements of a contiguous CPU tensor, to write. Views that share its memory must not be used meanwhile.
pub fn slice_mut<T: Number>(tensor: &mut Tensor) -> Result<&mut [T]> {
    check(tensor, Some(T::KIND))?;
    let length = count(tensor);
    if length == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `slice`; the exclusive borrow and the caller's promise about views make it the only access.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr() as *mut T, length) })
}

/// The bytes of a contiguous CPU tensor of any kind, in the machine's (little-endian) order.
pub fn bytes(tensor: &Tensor) -> Result<&[u8]> {
    check(tensor, None)?;
    let length = count(tensor) * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return Ok(&[]);
    }
    // SAFETY: as in `slice`; every byte of a numeric tensor is initialised.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr() as *const u8, length) })
}

/// The bytes of a contiguous CPU tensor of any kind, to write. Views that share its memory must not be used meanwhile.
pub fn bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8]> {
    check(tensor, None)?;
    let length = count(tensor) * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `slice_mut`; every bit pattern is a value of a numeric kind.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr() as *mut u8, length) })
}

/// Values that look random and are the same in every run, whatever other tests do to libtorch's generator.
#[cfg(test)]
pub fn waves(shape: &[i64], phase: f64) -> Tensor {
    let length = shape.iter().product::<i64>();
    let index = Tensor::arange(length, (Kind::Double, Device::Cpu));
    ((&index * 12.9898 + phase).sin() * 43.758).sin().to_kind(Kind::Float).view(shape)
}
