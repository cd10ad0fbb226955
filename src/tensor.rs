//! Small tensor helpers: kinds, and the memory of CPU tensors as slices.
//!
//! One of the few files with `unsafe`: tch hands out a raw pointer, and everything that walks a tensor's memory
//! (loops, MPI, safetensors) goes through here. A slice is a loan of memory, as with `RefCell`: memory that is lent for writing
//! is lent only once, whichever tensor handle it is asked through.

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};
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
pub(crate) fn count(tensor: &Tensor) -> usize {
    tensor.size().iter().product::<i64>() as usize
}

/// Copies values to a tensor on a device. For a GPU the copy goes through pinned memory and is queued behind earlier work: the
/// host does not wait for it, and libtorch keeps the pinned memory until it is done.
pub(crate) fn on_device<T: tch::kind::Element>(values: &[T], device: Device) -> Tensor {
    let values = Tensor::from_slice(values);
    match device {
        Device::Cpu => values,
        // `pin_memory` warns on every call that it is given a device, which tch cannot leave out.
        Device::Cuda(_) => values.internal_pin_memory(device).to_device_(device, T::KIND, true, false),
        _ => values.to_device(device),
    }
}

/// The values on the host; a CPU tensor is returned as it is. From a GPU the copy to pinned memory is only queued: the caller
/// must not read it before the work queued so far is done.
///
/// # Errors
/// A failed device.
pub(crate) fn queue_to_host(values: &Tensor) -> Result<Tensor> {
    Ok(values.f_to_device_(Device::Cpu, values.kind(), true, false)?)
}

/// Memory that is lent as slices at this moment, by any thread. Handles of a tensor are shallow, so the borrow checker cannot
/// know which of them share memory; their addresses show it.
static LOANS: Mutex<Vec<Loan>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, PartialEq)]
struct Loan {
    addresses: Range<usize>,
    to_write: bool,
}

/// A loan that ends when this is dropped.
#[derive(Debug)]
struct Lent(Loan);

impl Lent {
    fn new(addresses: Range<usize>, to_write: bool) -> Result<Self> {
        let new = Loan { addresses, to_write };
        let mut loans = LOANS.lock().unwrap_or_else(PoisonError::into_inner);
        if loans.iter().any(|loan| loan.excludes(&new)) {
            return Err(Error::runtime("an output of an operation shares memory with another of its tensors"));
        }
        loans.push(new.clone());
        Ok(Self(new))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut loans = LOANS.lock().unwrap_or_else(PoisonError::into_inner);
        // Equal loans are as good as each other.
        if let Some(at) = loans.iter().position(|loan| *loan == self.0) {
            loans.swap_remove(at);
        }
    }
}

impl Loan {
    /// Whether the two must not be lent at the same time: they share memory, and one of them is for writing.
    fn excludes(&self, other: &Self) -> bool {
        let [ours, theirs] = [self, other].map(|loan| &loan.addresses);
        (self.to_write || other.to_write) && ours.start < theirs.end && theirs.start < ours.end
    }
}

/// A tensor's elements, for reading. While it lives, nothing that shares their memory is lent for writing.
#[derive(Debug)]
pub struct Slice<'a, T> {
    elements: NonNull<[T]>,
    _lent: Lent,
    _tensor: PhantomData<&'a Tensor>,
}

/// A tensor's elements, for writing. While it lives, nothing that shares their memory is lent.
#[derive(Debug)]
pub struct SliceMut<'a, T>(Slice<'a, T>);

impl<T> Deref for Slice<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `lend` has checked kind and length, the tensor's borrow keeps the memory alive, and the loan keeps it from
        // being lent for writing. libtorch is outside this: no operation of its own may write to the tensor meanwhile.
        unsafe { self.elements.as_ref() }
    }
}

impl<T> Deref for SliceMut<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for SliceMut<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; a loan to write excludes every other of that memory, on every thread.
        unsafe { self.0.elements.as_mut() }
    }
}

/// The memory of a contiguous CPU tensor as `T`s: its elements, which must be of `kind`, or its bytes if `kind` is None.
fn lend<T>(tensor: &Tensor, kind: Option<Kind>, to_write: bool) -> Result<Slice<'_, T>> {
    let wrong_kind = kind.is_some_and(|kind| kind != tensor.kind());
    if tensor.device() != Device::Cpu || !tensor.is_contiguous() || wrong_kind {
        return Err(Error::runtime(format!(
            "a contiguous CPU tensor{} was expected, not {:?} on {:?}",
            kind.map(|kind| format!(" of {kind:?}")).unwrap_or_default(),
            tensor.kind(),
            tensor.device()
        )));
    }
    let bytes = count(tensor) * tensor.kind().elt_size_in_bytes();
    let start =
        if bytes == 0 { NonNull::dangling() } else { NonNull::new(tensor.data_ptr()).ok_or_else(no_memory)?.cast() };
    let lent = Lent::new(start.addr().get()..start.addr().get() + bytes, to_write)?;
    let elements = NonNull::slice_from_raw_parts(start, bytes / size_of::<T>());
    Ok(Slice { elements, _lent: lent, _tensor: PhantomData })
}

fn no_memory() -> Error {
    Error::runtime("a tensor has elements and no memory")
}

/// The elements of a contiguous CPU tensor.
///
/// # Errors
/// Any other tensor, or memory that is lent for writing.
pub fn slice<T: Number>(tensor: &Tensor) -> Result<Slice<'_, T>> {
    lend(tensor, Some(T::KIND), false)
}

/// The elements of a contiguous CPU tensor, for writing.
///
/// # Errors
/// Any other tensor, or memory that is lent, through any tensor.
pub fn slice_mut<T: Number>(tensor: &Tensor) -> Result<SliceMut<'_, T>> {
    lend(tensor, Some(T::KIND), true).map(SliceMut)
}

/// The bytes of a contiguous CPU tensor of any kind, in the machine's (little-endian) order.
///
/// # Errors
/// As [`slice()`].
pub fn bytes(tensor: &Tensor) -> Result<Slice<'_, u8>> {
    lend(tensor, None, false)
}

/// The bytes of a contiguous CPU tensor of any kind, for writing.
///
/// # Errors
/// As [`slice_mut`].
pub(crate) fn bytes_mut(tensor: &Tensor) -> Result<SliceMut<'_, u8>> {
    lend(tensor, None, true).map(SliceMut)
}

/// Values that look random and are the same in every run, whatever other tests do to libtorch's generator.
#[cfg(test)]
pub(crate) fn waves(shape: &[i64], phase: f64) -> Tensor {
    let length = shape.iter().product::<i64>();
    let index = Tensor::arange(length, (Kind::Double, Device::Cpu));
    ((&index * 12.9898 + phase).sin() * 43.758).sin().to_kind(Kind::Float).view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the memory of `tensor` is lent, by each way that asks for it.
    fn lent(tensor: &Tensor) -> [bool; 4] {
        // One after the other: each loan ends before the next is asked for.
        let to_read = [slice::<f32>(tensor).map(drop), bytes(tensor).map(drop)];
        let to_write = [slice_mut::<f32>(tensor).map(drop), bytes_mut(tensor).map(drop)];
        [&to_read[0], &to_read[1], &to_write[0], &to_write[1]].map(Result::is_ok)
    }

    #[test]
    fn what_is_lent_to_write_is_lent_once() {
        let all = waves(&[12], 0.0);
        let [left, over, right] = [(0, 8), (7, 2), (8, 4)].map(|(start, length)| all.narrow(0, start, length));
        let check = || {
            for other in [&left.shallow_clone(), &over, &all] {
                assert_eq!(lent(other), [false; 4]);
            }
            assert_eq!(lent(&right), [true; 4], "memory beside it is free");
            std::thread::scope(|scope| {
                let elsewhere = all.shallow_clone();
                assert_eq!(scope.spawn(move || lent(&elsewhere)).join().unwrap(), [false; 4], "on every thread");
            });
        };
        let held = slice_mut::<f32>(&left).unwrap();
        check();
        drop(held);
        assert_eq!(lent(&all), [true; 4], "a loan ends");
        let held = bytes_mut(&left).unwrap();
        check();
        drop(held);
        assert_eq!(lent(&all), [true; 4]);
    }

    #[test]
    fn what_is_read_may_be_read_again_and_not_written() {
        let all = waves(&[12], 0.0);
        let over = all.narrow(0, 4, 4);
        let (first, second) = (slice::<f32>(&all).unwrap(), slice::<f32>(&all).unwrap());
        assert_eq!(lent(&over), [true, true, false, false]);
        drop(first);
        assert_eq!(lent(&over), [true, true, false, false], "the other loan of the same memory goes on");
        drop(second);
        assert_eq!(lent(&over), [true; 4]);
        let read = bytes(&over).unwrap();
        assert_eq!(lent(&all), [true, true, false, false]);
        drop(read);
        assert_eq!(lent(&all), [true; 4]);
    }

    #[test]
    fn slices_are_the_tensors_memory() {
        let tensor = Tensor::from_slice(&[1f32, 2.0, 3.0]);
        slice_mut::<f32>(&tensor).unwrap()[1] = 5.0;
        assert_eq!(*slice::<f32>(&tensor).unwrap(), [1.0, 5.0, 3.0]);
        assert_eq!(bytes(&tensor).unwrap()[4..8], 5f32.to_le_bytes());
        bytes_mut(&tensor).unwrap()[..4].copy_from_slice(&7f32.to_le_bytes());
        assert_eq!(tensor, Tensor::from_slice(&[7f32, 5.0, 3.0]));
        let empty = tensor.narrow(0, 1, 0);
        let _both = (slice_mut::<f32>(&empty).unwrap(), bytes_mut(&empty).unwrap());
        for other in [tensor.to_kind(Kind::Double), tensor.view([3, 1]).expand([3, 2], false)] {
            assert!(slice::<f32>(&other).is_err() && slice_mut::<f32>(&other).is_err(), "{other:?}");
        }
    }
}
