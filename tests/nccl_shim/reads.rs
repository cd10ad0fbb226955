//! Calls of libtorch that make a thread wait for a device, if the tested program makes them: recorded, then passed on. With
//! tensors in CPU memory nothing waits, but the call is made all the same. Works if the shim is preloaded, on x86-64.
//!
//! What libtorch calls within itself is not recorded: it depends on the device.

use super::plan::record;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// How a call is recorded, and the name of the function in libtorch.
const CALLS: [(&str, &CStr); 8] = [
    ("read", c"_ZNK2at6Tensor4itemIdEET_v"),
    ("read", c"_ZNK2at6Tensor4itemIlEET_v"),
    ("read", c"_ZN2at4_ops4item4callERKNS_6TensorE"),
    ("read", c"_ZN2at4_ops5equal4callERKNS_6TensorES4_"),
    ("read", c"_ZN2at4_ops7nonzero4callERKNS_6TensorE"),
    ("read", c"_ZN2at4_ops13masked_select4callERKNS_6TensorES4_"),
    (
        "copy, if it changes no kind",
        c"_ZN2at4_ops15to_dtype_layout4callERKNS_6TensorESt8optionalIN3c1010ScalarTypeEES5_INS6_6LayoutEES5_INS6_6DeviceEES5_IbEbbS5_INS6_12MemoryFormatEE",
    ),
    (
        "copy, if it blocks",
        c"_ZN2at4_ops9to_device4callERKNS_6TensorEN3c106DeviceENS5_10ScalarTypeEbbSt8optionalINS5_12MemoryFormatEE",
    ),
];

#[repr(C)]
struct Found {
    file: *const c_char,
    base: *mut c_void,
    name: *const c_char,
    address: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, found: *mut Found) -> c_int;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;

/// Whether the code at this address is the program's own, and no library's.
unsafe fn in_program(address: *const c_void) -> bool {
    let mut found = Found { file: c"".as_ptr(), base: RTLD_NEXT, name: c"".as_ptr(), address: RTLD_NEXT };
    unsafe { dladdr(address, &mut found) != 0 && !CStr::from_ptr(found.file).to_string_lossy().contains(".so") }
}

/// Records a call from `caller` with this third and fifth argument. Returns libtorch's own function.
unsafe extern "C" fn seen(call: usize, caller: *const c_void, third: u64, fifth: u64) -> *mut c_void {
    static REAL: [AtomicPtr<c_void>; CALLS.len()] = [const { AtomicPtr::new(std::ptr::null_mut()) }; CALLS.len()];
    let (name, symbol) = CALLS[call];
    let waits = match name {
        // Result, tensor, kind and whether there is one, ...
        "copy, if it changes no kind" => third >> 8 & 0xff == 0,
        // Result, tensor, device, kind, whether not to block, ...
        "copy, if it blocks" => fifth & 0xff == 0,
        _ => true,
    };
    unsafe {
        if waits && in_program(caller) {
            record(name.split(',').next().unwrap(), 0, call);
        }
        let mut real = REAL[call].load(Ordering::Relaxed);
        if real.is_null() {
            real = dlsym(RTLD_NEXT, symbol.as_ptr());
            assert!(!real.is_null(), "libtorch has no {symbol:?}");
            REAL[call].store(real, Ordering::Relaxed);
        }
        real
    }
}

/// A function under libtorch's name, which keeps every argument as it is.
macro_rules! passed_on {
    ($($function:ident $call:literal $symbol:literal)*) => {
        $(
            #[unsafe(naked)]
            #[unsafe(export_name = $symbol)]
            pub unsafe extern "C" fn $function() {
                std::arch::naked_asm!(
                    "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "sub rsp, 8",
                    "mov rcx, r8",
                    "mov rsi, [rsp + 56]",
                    "mov edi, {call}",
                    "call {seen}",
                    "add rsp, 8", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                    "jmp rax",
                    call = const $call,
                    seen = sym seen,
                )
            }
        )*
    };
}

passed_on! {
    item_f64 0 "_ZNK2at6Tensor4itemIdEET_v"
    item_i64 1 "_ZNK2at6Tensor4itemIlEET_v"
    item 2 "_ZN2at4_ops4item4callERKNS_6TensorE"
    equal 3 "_ZN2at4_ops5equal4callERKNS_6TensorES4_"
    nonzero 4 "_ZN2at4_ops7nonzero4callERKNS_6TensorE"
    masked_select 5 "_ZN2at4_ops13masked_select4callERKNS_6TensorES4_"
    to_dtype_layout 6 "_ZN2at4_ops15to_dtype_layout4callERKNS_6TensorESt8optionalIN3c1010ScalarTypeEES5_INS6_6LayoutEES5_INS6_6DeviceEES5_IbEbbS5_INS6_12MemoryFormatEE"
    to_device 7 "_ZN2at4_ops9to_device4callERKNS_6TensorEN3c106DeviceENS5_10ScalarTypeEbbSt8optionalINS5_12MemoryFormatEE"
}

/// Marks the first launch of a step (1) and its last (0) in the record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shim_mark(first: c_int) {
    record("mark", 0, first as usize);
}
